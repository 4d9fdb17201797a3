// Convolutions whose groups have many channels, as products of matrices that are put together block by block: rows are
// pixels, the summed axis is (tap, channel), columns are output channels.
#pragma once

#include "slide.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

constexpr int64_t kDepth = 192;           // (tap, channel) pairs that a block sums up
constexpr int64_t kPitch = kDepth + 16;   // floats from one row of a block to the next
constexpr int64_t kBlockTiles = 16;       // register tiles in a block of rows

// A register tile's operands: sums[r][c] = sum over k of a[r * a_pitch + k] * b[k * b_pitch + c].
struct Operands {
  const float* a;
  int64_t a_pitch;
  const float* b;
  int64_t b_pitch;
  int64_t depth;
};

// Rows are reached by three from a register each, since there are fewer registers for addresses than rows.
template <int kR, int kV>
JAXCNN_INLINE void multiply(const Operands& in, Vec (&sums)[kR][kV]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sums[r][v] = Vec{};
  constexpr int kBases = (kR + 2) / 3;
  const char* bases[kBases];
  const int64_t pitch = in.a_pitch * 4;
#pragma GCC unroll 8
  for (int i = 0; i < kBases; ++i) bases[i] = reinterpret_cast<const char*>(in.a) + 3 * i * pitch;
  const float* b = in.b;
  for (int64_t k = 0; k < in.depth; ++k, b += in.b_pitch) {
    Vec column[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kBases; ++i) {
      const char* base = bases[i];
#if defined(__x86_64__)
      // Keeps the compiler from making a pointer of each row.
      __asm__("" : "+r"(base));
#endif
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) {
        const int r = 3 * i + j;
        if (r >= kR) break;
        const Vec value = splat(*reinterpret_cast<const float*>(base + j * pitch));
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) sums[r][v] += value * column[v];
      }
      bases[i] = base + 4;
    }
  }
}

// Like `multiply`, with a pointer to the values of all rows for each k.
template <int kR, int kV>
JAXCNN_INLINE void multiply_pixels(const float* const* pixels, int64_t channel, const float* b, int64_t depth,
                                   Vec (&sums)[kR][kV]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sums[r][v] = Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    const float* a = pixels[k] + channel;
    Vec column[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) column[v] = load(b + k * (kV * kLanes) + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const Vec value = splat(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[r][v] += value * column[v];
    }
  }
}

// Writes (`first`) or adds a register tile to the rows of the result; `columns` are stored of each, after the steps of
// an epilogue if there are any.
template <int kR, int kV>
JAXCNN_INLINE void put(float* const* rows, Vec (&sums)[kR][kV], int64_t columns, bool first,
                       const RegisterSteps* steps = nullptr) {
  if (steps) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      const int64_t lanes = least(kLanes, columns - v * kLanes);
      if (lanes <= 0) break;
      const Vec scale = steps->scales(v * kLanes, lanes), bias = steps->biases(v * kLanes, lanes);
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
        float* const to = rows[r] + v * kLanes;
        const Vec sum = first ? sums[r][v] : load_some(to, lanes) + sums[r][v];
        store_some(to, steps->apply(sum, scale, bias, to, lanes), lanes);
      }
    }
    return;
  }
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

template <int kR, int kV>
__attribute__((noinline)) void tile(const Operands& in, float* const* rows, int64_t columns, bool first,
                                    const RegisterSteps* steps) {
  Vec sums[kR][kV];
  multiply<kR, kV>(in, sums);
  put<kR, kV>(rows, sums, columns, first, steps);
}

using TileFunction = void (*)(const Operands&, float* const*, int64_t, bool, const RegisterSteps*);

// The register tile of `count` rows, at most kRows.
template <int kV, int kR = kRows>
TileFunction tile_of(int64_t count) {
  if constexpr (kR == 1) {
    return tile<1, kV>;
  } else {
    return count == kR ? tile<kR, kV> : tile_of<kV, kR - 1>(count);
  }
}

template <int kR, int kV>
__attribute__((noinline)) void channel_tile(const float* const* pixels, int64_t channel, const float* b, int64_t depth,
                                            float* const* rows, int64_t columns, bool first) {
  Vec sums[kR][kV];
  multiply_pixels<kR, kV>(pixels, channel, b, depth, sums);
  put<kR, kV>(rows, sums, columns, first);
}

using ChannelTileFunction = void (*)(const float* const*, int64_t, const float*, int64_t, float* const*, int64_t, bool);

template <int kV, int kR = kRows>
ChannelTileFunction channel_tile_of(int64_t count) {
  if constexpr (kR == 1) {
    return channel_tile<1, kV>;
  } else {
    return count == kR ? channel_tile<kR, kV> : channel_tile_of<kV, kR - 1>(count);
  }
}

// A run of memory that a pixel's window reads: pairs (tap, channel) that follow each other.
struct Segment {
  int64_t depth, height, width;  // of the source pixel, from that of the window's first tap
  int64_t from;                  // floats from the pixel's first channel of the group
  int64_t count;
};

// Copies what is summed for one pixel: a range of pairs (tap, channel), zeros for padding.
struct PixelReader {
  const Slide& slide;
  const float* source;  // the first channel of the group, in the first image
  bool merged;          // whether the taps of a row and their channels are one run of memory
  Segment* segments;
  int64_t count = 0;

  PixelReader(const Slide& slide, const float* source)
      : slide(slide),
        source(source),
        merged(slide.groups == 1 && slide.axis[2].source_step == 1 && slide.axis[2].taps > 1),
        segments(reinterpret_cast<Segment*>(Scratch::floats(4, kDepth * sizeof(Segment) / sizeof(float)))) {}

  // Chooses the pairs [begin, end).
  void choose(int64_t begin, int64_t end) {
    const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
    const int64_t run = merged ? wa->taps * slide.source_channels : slide.source_channels;
    count = 0;
    while (begin < end) {
      const int64_t number = begin / run, from = begin % run, size = least(run - from, end - begin);
      const int64_t tw = merged ? 0 : number % wa->taps, rest = merged ? number : number / wa->taps;
      const int64_t th = rest % ha->taps, td = rest / ha->taps;
      segments[count++] = {td * da->source_step, th * ha->source_step, tw * wa->source_step, from, size};
      begin += size;
    }
  }

  void read(int64_t image, int64_t d, int64_t h, int64_t w, float* to) const {
    const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
    const int64_t pixel = slide.source_pixel();
    d = d * da->source_stride + da->source_first;
    h = h * ha->source_stride + ha->source_first;
    const int64_t column = w * wa->source_stride + wa->source_first;
    // Of a merged run the part that lies inside of the source.
    int64_t inside_from = 0, inside_to = INT64_MAX;
    if (merged && (column < 0 || column + wa->taps > wa->source_size)) {
      int64_t first, last;
      taps_inside(*wa, w, &first, &last);
      inside_from = first * slide.source_channels;
      inside_to = last * slide.source_channels;
    }
    for (const Segment *s = segments, *stop = segments + count; s < stop; to += s->count, ++s) {
      const int64_t sd = d + s->depth, sh = h + s->height, sw = column + s->width;
      const bool inside = static_cast<uint64_t>(sd) < static_cast<uint64_t>(da->source_size) &&
                          static_cast<uint64_t>(sh) < static_cast<uint64_t>(ha->source_size) &&
                          (merged || static_cast<uint64_t>(sw) < static_cast<uint64_t>(wa->source_size));
      if (!inside) {
        clear(to, s->count);
        continue;
      }
      const float* line = source + (((image * da->source_size + sd) * ha->source_size + sh) * wa->source_size + sw) * pixel;
      if (s->from >= inside_from && s->from + s->count <= inside_to) {
        copy(to, line + s->from, s->count);
        continue;
      }
      const int64_t end = s->from + s->count;
      const int64_t low = least(end, most(inside_from, s->from)), high = most(low, least(inside_to, end));
      clear(to, low - s->from);
      copy(to + (low - s->from), line + low, high - low);
      clear(to + (high - s->from), end - high);
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
      for (int v = 0; v < kV; ++v) {
        const int64_t lines = least(kLanes, most(columns - v * kLanes, 0));
        for (int64_t c = 0; c < count; c += kLanes) {
          const int64_t size = least(kLanes, count - c);
          Vec rows[kLanes];
#pragma GCC unroll 16
          for (int n = 0; n < kLanes; ++n) {
            rows[n] = n < lines ? load_some(base + (v * kLanes + n) * result_step + c, size) : Vec{};
          }
          transpose(rows);
          for (int64_t i = 0; i < size; ++i) store(to + (c + i) * kWidth + v * kLanes, rows[i]);
        }
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
  const int64_t threads = runner.threads(), wanted = threads > 1 ? 2 * threads : 1;
  int64_t blocks = ceil_div(tiles, kBlockTiles), ranges = 1;
  while (blocks * ranges * slide.groups < wanted && ranges < panels) ++ranges;
  while (blocks * ranges * slide.groups < wanted && ceil_div(tiles, blocks) > 4) ++blocks;
  const int64_t block_tiles = ceil_div(tiles, blocks);
  const int64_t range_panels = ceil_div(panels, ranges);
  const bool plain = is_empty(epilogue), in_registers = !plain && RegisterSteps::covers(epilogue);
  // Windows of one tap that slide over all pixels read the source as it lies.
  bool direct = true;
  for (const SlideAxis& axis : slide.axis) {
    direct = direct && axis.taps == 1 && axis.source_stride == 1 && axis.source_first == 0 &&
             axis.source_size == axis.results;
  }
  // The kernel is copied where the copy is read often enough; its last columns always are.
  constexpr int64_t kFewTiles = 5;
  const bool in_place = !slide.transposed && block_tiles <= kFewTiles && slide.taps() == 1;

  parallel(runner, blocks * ranges * slide.groups, [&](int64_t task) {
    const int64_t range = task % ranges, group = task / ranges % slide.groups, block = task / ranges / slide.groups;
    const int64_t first_row = block * block_tiles * kRows, last_row = least(first_row + block_tiles * kRows, pixels);
    const int64_t first_panel = range * range_panels, last_panel = least(first_panel + range_panels, panels);
    if (first_row >= last_row || first_panel >= last_panel) return;
    PixelReader reader(slide, source + group * slide.source_channels);
    float* const rows_packed = direct ? nullptr : Scratch::floats(0, block_tiles * kRows * kPitch);
    float* const columns_packed = Scratch::floats(1, kDepth * kColumns);
    // Where each row of the block lies in the result.
    float** const places = reinterpret_cast<float**>(Scratch::floats(2, 2 * block_tiles * kRows));
    const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;

    for (int64_t begin = 0; begin == 0 || begin < depth; begin += kDepth) {
      const int64_t end = least(begin + kDepth, depth);
      if (!direct) reader.choose(begin, end);
      int64_t rest = first_row;
      int64_t w = rest % wa->results;
      rest /= wa->results;
      int64_t h = rest % ha->results;
      rest /= ha->results;
      int64_t d = rest % da->results, image = rest / da->results;
      for (int64_t row = first_row; row < last_row && (begin == 0 || !direct); ++row) {
        if (!direct) reader.read(image, d, h, w, rows_packed + (row - first_row) * kPitch);
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
        Operands in = {nullptr, kPitch, columns_packed, vectors * kLanes, end - begin};
        if (in_place && width == vectors * kLanes) {
          in.b = kernel + begin * slide.result_pixel() + group * columns + column;
          in.b_pitch = slide.result_pixel();
        } else if (vectors == 2) {
          pack_columns<2>(slide, kernel, group, begin, end, column, width, columns_packed);
        } else {
          pack_columns<1>(slide, kernel, group, begin, end, column, width, columns_packed);
        }
        const bool last = end == depth;
        const RegisterSteps steps(epilogue, group * columns + column, result);
        for (int64_t row = first_row; row < last_row; row += kRows) {
          const int64_t count = least(kRows, last_row - row);
          float* to[kRows];
          for (int64_t r = 0; r < count; ++r) to[r] = places[row - first_row + r] + column;
          if (direct) {
            in.a = source + row * slide.source_pixel() + group * slide.source_channels + begin;
            in.a_pitch = slide.source_pixel();
          } else {
            in.a = rows_packed + (row - first_row) * kPitch;
          }
          const auto function = vectors == 1 ? tile_of<1>(count) : tile_of<2>(count);
          function(in, to, width, begin == 0, last && in_registers ? &steps : nullptr);
          if (last && !plain && !in_registers) finish(to, count, width, group * columns + column, result, epilogue);
        }
      }
    }
  });
}

// A source pixel, inside of the image or in its padding.
struct Place {
  const float* pixel;
  int64_t depth, height, width;
};

constexpr int64_t kPixelBlock = 192;    // pixels that a block of a kernel's gradient sums up
constexpr int64_t kPartPixels = 8192;   // least pixels of a part that is summed up on its own
constexpr int64_t kMostParts = 8;

// The role "kernel": rows are (tap, input channel), the summed axis is the pixels, columns are output channels.
inline void kernel_dense(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const Slide slide = forward_slide(p);
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  // Few channels: the taps of a row are one run of rows.
  const bool merged = slide.groups == 1 && wa->source_step == 1 && slide.source_channels < kRows;
  const int64_t run_taps = merged ? wa->taps : 1;
  const int64_t pixels = slide.batch * slide.results(), taps = slide.taps() / run_taps;
  const int64_t channels = slide.source_channels * run_taps, columns = slide.result_channels, groups = slide.groups;
  const int64_t panels = ceil_div(columns, kColumns);
  // Tiles of even sizes: 16 channels are 8 and 8, not 14 and 2.
  const int64_t channel_tiles = ceil_div(channels, kRows), tile_rows = ceil_div(channels, channel_tiles);
  const int64_t tiles = taps * channel_tiles;

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
    const float** const pixels_read = reinterpret_cast<const float**>(Scratch::floats(1, 2 * kPixelBlock));
    Place* const places = reinterpret_cast<Place*>(Scratch::floats(2, kPixelBlock * sizeof(Place) / sizeof(float)));
    float* const zeros = Scratch::floats(5, channels);
    clear(zeros, channels);
    float* const borders = merged ? Scratch::floats(4, kPixelBlock * channels) : nullptr;
    const float* const group_x = x + group * channels;

    for (int64_t begin = first_pixel; begin == first_pixel || begin < last_pixel; begin += kPixelBlock) {
      const int64_t end = least(begin + kPixelBlock, last_pixel), count = end - begin;
      int64_t rest = begin;
      int64_t w = rest % wa->results;
      rest /= wa->results;
      int64_t h = rest % ha->results;
      rest /= ha->results;
      int64_t d = rest % da->results, image = rest / da->results;
      const float* from = y + begin * slide.result_pixel() + group * columns + column;
      float* copied = columns_packed;
      for (int64_t i = 0; i < count; ++i, from += slide.result_pixel(), copied += pitch) {
        store(copied, load_some(from, width));
        if (vectors == 2) store(copied + kLanes, load_some(from + kLanes, width - kLanes));
        // The pixel under the window's first tap.
        const int64_t sd = d * da->source_stride + da->source_first, sh = h * ha->source_stride + ha->source_first;
        const int64_t sw = w * wa->source_stride + wa->source_first;
        const int64_t line = (image * da->source_size + sd) * ha->source_size + sh;
        places[i] = {group_x + (line * wa->source_size + sw) * slide.source_pixel(), sd, sh, sw};
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
      for (int64_t t = first_tile; t < last_tile; ++t) {
        const int64_t tap = t / channel_tiles, channel = t % channel_tiles * tile_rows;
        const int64_t rows = least(tile_rows, channels - channel);
        if (t == first_tile || channel == 0) {
          const int64_t tw = merged ? 0 : tap % wa->taps, rest = merged ? tap : tap / wa->taps;
          const int64_t th = rest % ha->taps, td = rest / ha->taps;
          const int64_t od = td * da->source_step, oh = th * ha->source_step, ow = tw * wa->source_step;
          const int64_t step = ((od * ha->source_size + oh) * wa->source_size + ow) * slide.source_pixel();
          for (int64_t i = 0; i < count; ++i) {
            const int64_t sd = places[i].depth + od, sh = places[i].height + oh, sw = places[i].width + ow;
            const float* const pixel = places[i].pixel + step;
            const bool inside = static_cast<uint64_t>(sd) < static_cast<uint64_t>(da->source_size) &&
                                static_cast<uint64_t>(sh) < static_cast<uint64_t>(ha->source_size) &&
                                (merged || static_cast<uint64_t>(sw) < static_cast<uint64_t>(wa->source_size));
            if (!inside) {
              pixels_read[i] = zeros;
            } else if (merged && (sw < 0 || sw + wa->taps > wa->source_size)) {
              const int64_t low = least(channels, most(0, -sw) * slide.source_channels);
              const int64_t high = most(low, least(channels, (wa->source_size - sw) * slide.source_channels));
              float* const copied = borders + i * channels;
              clear(copied, low);
              copy(copied + low, pixel + low, high - low);
              clear(copied + high, channels - high);
              pixels_read[i] = copied;
            } else {
              pixels_read[i] = pixel;
            }
          }
        }
        if (rows <= 0) continue;
        float* to[kRows];
        for (int64_t r = 0; r < rows; ++r) to[r] = target + (tap * channels + channel + r) * slide.result_pixel();
        const auto function = vectors == 1 ? channel_tile_of<1>(rows) : channel_tile_of<2>(rows);
        function(pixels_read, channel, columns_packed, count, to, width, begin == first_pixel);
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
