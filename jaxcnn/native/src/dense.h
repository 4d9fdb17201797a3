// Convolutions whose groups have many channels, as products of matrices that are put together block by block: rows are
// pixels, the summed axis is (tap, channel), columns are output channels.
#pragma once

#include "slide.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

constexpr int64_t kDepth = 192;           // (tap, channel) pairs that a block sums up
constexpr int64_t kPitch = kDepth + 16;   // floats from one row of a block to the next
constexpr int64_t kBlockTiles = 16;       // register tiles in a block of rows

// sums[r][c] = sum over k of a(r, k) * b[k][c], where a(r, k) lies at a[r * row + k * step].
template <int kR, int kV, int64_t kRow, int64_t kStep>
JAXCNN_INLINE void multiply(const float* a, const float* b, int64_t depth, Vec (&sums)[kR][kV]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sums[r][v] = Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec column[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) column[v] = load(b + k * (kV * kLanes) + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const Vec value = splat(a[r * kRow + k * kStep]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[r][v] += value * column[v];
    }
  }
}

// Writes (`first`) or adds a register tile to the rows of the result; `columns` are stored of each.
template <int kR, int kV>
JAXCNN_INLINE void put(float* const* rows, Vec (&sums)[kR][kV], int64_t columns, bool first) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
    float* row = rows[r];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      const int64_t lanes = columns - v * kLanes;
      float* to = row + v * kLanes;
      if (lanes >= kLanes) {
        store(to, first ? sums[r][v] : load(to) + sums[r][v]);
      } else if (lanes > 0) {
        store_some(to, first ? sums[r][v] : load_some(to, lanes) + sums[r][v], lanes);
      }
    }
  }
}

template <int kR, int kV, int64_t kRow, int64_t kStep>
__attribute__((noinline)) void tile(const float* a, const float* b, int64_t depth, float* const* rows, int64_t columns,
                                    bool first) {
  Vec sums[kR][kV];
  multiply<kR, kV, kRow, kStep>(a, b, depth, sums);
  put<kR, kV>(rows, sums, columns, first);
}

using TileFunction = void (*)(const float*, const float*, int64_t, float* const*, int64_t, bool);

// The register tile of `count` rows, at most kRows, and as many vectors.
template <int kV, int64_t kRow, int64_t kStep, int kR = kRows>
TileFunction tile_of(int64_t count) {
  if constexpr (kR == 1) {
    return tile<1, kV, kRow, kStep>;
  } else {
    return count == kR ? tile<kR, kV, kRow, kStep> : tile_of<kV, kRow, kStep, kR - 1>(count);
  }
}

// Rows of `multiply` that are pixels: a row is contiguous along the summed axis.
inline TileFunction pixel_tile(int64_t count, int64_t vectors) {
  return vectors == 1 ? tile_of<1, kPitch, 1>(count) : tile_of<2, kPitch, 1>(count);
}

// What is summed for one pixel: the pairs (tap, channel) from `begin` to `end`, copied to `to`, zeros for padding.
struct PixelReader {
  const Slide& slide;
  const float* source;  // the first channel of the group, in the first image
  bool merged;          // whether the taps of a row and their channels are one run of memory

  explicit PixelReader(const Slide& slide, const float* source)
      : slide(slide),
        source(source),
        merged(slide.groups == 1 && slide.axis[2].source_step == 1 && slide.axis[2].taps > 1) {}

  void read(int64_t image, int64_t d, int64_t h, int64_t w, int64_t begin, int64_t end, float* to) const {
    const SlideAxis *depth = slide.axis, *height = slide.axis + 1, *width = slide.axis + 2;
    const int64_t channels = slide.source_channels, pixel = slide.source_pixel();
    const int64_t run = merged ? width->taps * channels : channels;
    const int64_t column = w * width->source_stride + width->source_first;
    int64_t inside_from = 0, inside_to = run;
    if (merged) {
      int64_t first, last;
      taps_inside(*width, w, &first, &last);
      inside_from = first * channels;
      inside_to = last * channels;
    }
    int64_t tap = begin / run, from = begin - tap * run;
    while (begin < end) {
      const int64_t count = least(run - from, end - begin);
      const int64_t tw = merged ? 0 : tap % width->taps, rest = merged ? tap : tap / width->taps;
      const int64_t th = rest % height->taps, td = rest / height->taps;
      const int64_t sd = d * depth->source_stride + depth->source_first + td * depth->source_step;
      const int64_t sh = h * height->source_stride + height->source_first + th * height->source_step;
      const int64_t sw = column + tw * width->source_step;
      const bool inside = sd >= 0 && sd < depth->source_size && sh >= 0 && sh < height->source_size &&
                          (merged || (sw >= 0 && sw < width->source_size));
      if (!inside) {
        clear(to, count);
      } else {
        const int64_t row = (image * depth->source_size + sd) * height->source_size + sh;
        const float* line = source + (row * width->source_size + sw) * pixel;
        if (!merged) {
          copy(to, line + from, count);
        } else {
          const int64_t lo = most(inside_from, from), hi = most(lo, least(inside_to, from + count));
          if (lo > from) clear(to, least(lo - from, count));
          if (hi > lo) copy(to + (lo - from), line + lo, hi - lo);
          if (hi < from + count && hi - from >= 0) clear(to + (hi - from), from + count - hi);
        }
      }
      to += count;
      begin += count;
      from = 0;
      ++tap;
    }
  }
};

// The kernel's rows [begin, end) of the summed axis and `columns` result channels from `column` on, kV vectors wide.
template <int kV>
void pack_columns(const Slide& slide, const float* kernel, int64_t group, int64_t begin, int64_t end, int64_t column,
                  int64_t columns, float* to) {
  const int64_t channels = slide.source_channels;
  const int64_t source_step = slide.transposed ? 1 : slide.result_pixel();
  const int64_t result_step = slide.transposed ? slide.source_pixel() : 1;
  const int64_t tap_size = slide.transposed ? slide.result_channels * slide.source_pixel()
                                            : slide.source_channels * slide.result_pixel();
  const int64_t offset = group * (slide.transposed ? slide.source_channels : slide.result_channels);
  constexpr int64_t kWidth = kV * kLanes;
  for (int64_t k = begin; k < end;) {
    const int64_t tap = k / channels, from = k - tap * channels, count = least(channels - from, end - k);
    const int64_t tw = tap % slide.axis[2].taps, rest = tap / slide.axis[2].taps;
    const int64_t th = rest % slide.axis[1].taps, td = rest / slide.axis[1].taps;
    const float* base = kernel + offset + slide.kernel_tap(td, th, tw) * tap_size + from * source_step +
                        column * result_step;
    if (!slide.transposed) {
      for (int64_t c = 0; c < count; ++c, to += kWidth, base += source_step) {
        for (int v = 0; v < kV; ++v) store(to + v * kLanes, load_some(base + v * kLanes, most(columns - v * kLanes, 0)));
      }
    } else {
      if (columns < kWidth) clear(to, count * kWidth);
      for (int64_t n = 0; n < columns; ++n) {
        const float* line = base + n * result_step;
        for (int64_t c = 0; c < count; ++c) to[c * kWidth + n] = line[c];
      }
      to += count * kWidth;
    }
    k += count;
  }
}

inline void slide_dense(const Slide& slide, const float* source, const float* kernel, float* result,
                        const Epilogue& epilogue, TaskRunner& runner) {
  const int64_t pixels = slide.batch * slide.results(), columns = slide.result_channels;
  const int64_t depth = slide.taps() * slide.source_channels;
  const int64_t tiles = ceil_div(pixels, kRows), panels = ceil_div(columns, kColumns);
  // Blocks of rows and ranges of columns: enough tasks to share out evenly, and blocks that are worth their packing.
  const int64_t threads = runner.threads(), wanted = threads > 1 ? 4 * threads : 1;
  int64_t blocks = ceil_div(tiles, kBlockTiles), ranges = 1;
  while (blocks * ranges * slide.groups < wanted && ranges < panels) ++ranges;
  while (blocks * ranges * slide.groups < wanted && ceil_div(tiles, blocks) > 4) ++blocks;
  const int64_t block_tiles = ceil_div(tiles, blocks);
  const int64_t range_panels = ceil_div(panels, ranges);
  const bool plain = is_empty(epilogue);

  parallel(runner, blocks * ranges * slide.groups, [&](int64_t task) {
    const int64_t range = task % ranges, group = task / ranges % slide.groups, block = task / ranges / slide.groups;
    const int64_t first_row = block * block_tiles * kRows, last_row = least(first_row + block_tiles * kRows, pixels);
    const int64_t first_panel = range * range_panels, last_panel = least(first_panel + range_panels, panels);
    if (first_row >= last_row || first_panel >= last_panel) return;
    const PixelReader reader(slide, source + group * slide.source_channels);
    float* const rows_packed = Scratch::floats(0, block_tiles * kRows * kPitch);
    float* const columns_packed = Scratch::floats(1, kDepth * kColumns);
    // Where each row of the block lies in the result.
    float** const places = reinterpret_cast<float**>(Scratch::floats(2, 2 * block_tiles * kRows));
    const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;

    for (int64_t begin = 0; begin == 0 || begin < depth; begin += kDepth) {
      const int64_t end = least(begin + kDepth, depth);
      int64_t rest = first_row;
      int64_t w = rest % wa->results;
      rest /= wa->results;
      int64_t h = rest % ha->results;
      rest /= ha->results;
      int64_t d = rest % da->results, image = rest / da->results;
      for (int64_t row = first_row; row < last_row; ++row) {
        reader.read(image, d, h, w, begin, end, rows_packed + (row - first_row) * kPitch);
        if (begin == 0) {
          const int64_t rd = da->result_first + d * da->result_step, rh = ha->result_first + h * ha->result_step;
          const int64_t rw = wa->result_first + w * wa->result_step;
          const int64_t place = ((image * da->result_size + rd) * ha->result_size + rh) * wa->result_size + rw;
          places[row - first_row] = result + place * slide.result_pixel() + group * columns;
        }
        if (++w == wa->results) {
          w = 0;
          if (++h == ha->results) {
            h = 0;
            if (++d == da->results) {
              d = 0;
              ++image;
            }
          }
        }
      }
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int64_t column = panel * kColumns, width = least(kColumns, columns - column);
        const int64_t vectors = width > kLanes ? 2 : 1;
        if (vectors == 2) {
          pack_columns<2>(slide, kernel, group, begin, end, column, width, columns_packed);
        } else {
          pack_columns<1>(slide, kernel, group, begin, end, column, width, columns_packed);
        }
        for (int64_t row = first_row; row < last_row; row += kRows) {
          const int64_t count = least(kRows, last_row - row);
          float* to[kRows];
          for (int64_t r = 0; r < count; ++r) to[r] = places[row - first_row + r] + column;
          pixel_tile(count, vectors)(rows_packed + (row - first_row) * kPitch, columns_packed, end - begin, to, width,
                                     begin == 0);
          if (end == depth && !plain) {
            for (int64_t r = 0; r < count; ++r) {
              const float* residual = epilogue.residual ? epilogue.residual + (to[r] - result) : nullptr;
              finish(to[r], residual, group * columns + column, width, epilogue);
            }
          }
        }
      }
    }
  });
}

constexpr int64_t kPixelBlock = 192;    // pixels that a block of a kernel's gradient sums up
constexpr int64_t kPartPixels = 8192;   // least pixels of a part that is summed up on its own
constexpr int64_t kMostParts = 8;

// The role "kernel": rows are (tap, input channel), the summed axis is the pixels, columns are output channels.
inline void kernel_dense(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const Slide slide = forward_slide(p);
  const int64_t pixels = slide.batch * slide.results(), taps = slide.taps();
  const int64_t channels = slide.source_channels, columns = slide.result_channels, groups = slide.groups;
  const int64_t panels = ceil_div(columns, kColumns);
  const int64_t channel_tiles = ceil_div(channels, kRows), tiles = taps * channel_tiles;
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;

  // Parts of the pixels depend on the shape alone, so that results do not depend on the number of threads.
  constexpr int64_t kFewTiles = 64;
  int64_t parts = tiles * panels * groups >= kFewTiles ? 1 : least(kMostParts, pixels / kPartPixels);
  parts = most(parts, 1);
  const int64_t part_pixels = ceil_div(pixels, parts);
  const int64_t size = taps * channels * slide.result_pixel();
  float* const sums = parts == 1 ? kernel : Scratch::floats(3, parts * size);

  const int64_t wanted = runner.threads() > 1 ? 4 * runner.threads() : 1;
  int64_t ranges = 1;
  while (parts * panels * groups * ranges < wanted && ranges < tiles) ++ranges;
  const int64_t range_tiles = ceil_div(tiles, ranges);

  parallel(runner, parts * groups * panels * ranges, [&](int64_t task) {
    const int64_t range = task % ranges, panel = task / ranges % panels;
    const int64_t group = task / ranges / panels % groups, part = task / ranges / panels / groups;
    const int64_t first_tile = range * range_tiles, last_tile = least(first_tile + range_tiles, tiles);
    const int64_t first_pixel = part * part_pixels, last_pixel = least(first_pixel + part_pixels, pixels);
    if (first_tile >= last_tile) return;
    const int64_t column = panel * kColumns, width = least(kColumns, columns - column);
    const int64_t vectors = width > kLanes ? 2 : 1, pitch = vectors * kLanes;
    float* const target = sums + part * size + group * columns + column;
    float* const columns_packed = Scratch::floats(0, kPixelBlock * kColumns);
    float* const rows_packed = Scratch::floats(1, kPixelBlock * kRows);
    int64_t* const places = reinterpret_cast<int64_t*>(Scratch::floats(2, 8 * kPixelBlock));
    const float* const group_x = x + group * channels;

    for (int64_t begin = first_pixel; begin == first_pixel || begin < last_pixel; begin += kPixelBlock) {
      const int64_t end = least(begin + kPixelBlock, last_pixel), count = end - begin;
      for (int64_t i = 0; i < count; ++i) {
        const float* from = y + (begin + i) * slide.result_pixel() + group * columns + column;
        float* to = columns_packed + i * pitch;
        store(to, load_some(from, width));
        if (vectors == 2) store(to + kLanes, load_some(from + kLanes, width - kLanes));
        // The first pixel under the window: image and depth, row, column.
        int64_t rest = begin + i;
        places[4 * i + 3] = rest % wa->results * wa->source_stride + wa->source_first;
        rest /= wa->results;
        places[4 * i + 2] = rest % ha->results * ha->source_stride + ha->source_first;
        rest /= ha->results;
        places[4 * i + 1] = rest % da->results * da->source_stride + da->source_first;
        places[4 * i] = rest / da->results;
      }
      for (int64_t t = first_tile; t < last_tile; ++t) {
        const int64_t tap = t / channel_tiles, channel = t % channel_tiles * kRows;
        const int64_t rows = least(kRows, channels - channel);
        const int64_t tw = tap % wa->taps, th = tap / wa->taps % ha->taps, td = tap / wa->taps / ha->taps;
        const int64_t od = td * da->source_step, oh = th * ha->source_step, ow = tw * wa->source_step;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t sd = places[4 * i + 1] + od, sh = places[4 * i + 2] + oh, sw = places[4 * i + 3] + ow;
          float* to = rows_packed + i * kRows;
          if (sd < 0 || sd >= da->source_size || sh < 0 || sh >= ha->source_size || sw < 0 || sw >= wa->source_size) {
            for (int64_t r = 0; r < rows; ++r) to[r] = 0.0f;
            continue;
          }
          const int64_t line = ((places[4 * i] * da->source_size + sd) * ha->source_size + sh) * wa->source_size + sw;
          const float* from = group_x + line * slide.source_pixel() + channel;
          for (int64_t r = 0; r < rows; ++r) to[r] = from[r];
        }
        float* to[kRows];
        for (int64_t r = 0; r < rows; ++r) to[r] = target + (tap * channels + channel + r) * slide.result_pixel();
        const auto function = vectors == 1 ? tile_of<1, 1, kRows>(rows) : tile_of<2, 1, kRows>(rows);
        function(rows_packed, columns_packed, count, to, width, begin == first_pixel);
      }
    }
  });
  if (parts == 1) return;
  constexpr int64_t kSlice = 4096;
  parallel(runner, ceil_div(size, kSlice), [&](int64_t task) {
    const int64_t begin = task * kSlice, end = least(begin + kSlice, size);
    for (int64_t i = begin; i < end; ++i) {
      float sum = sums[i];
      for (int64_t part = 1; part < parts; ++part) sum += sums[part * size + i];
      kernel[i] = sum;
    }
  });
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
