// Convolutions whose groups have many channels, as products of matrices. Rows are pixels, the summed axis is (tap,
// channel), columns are result channels.
#pragma once

#include "slide.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

constexpr int64_t kDepth = 320;                 // most (tap, channel) pairs whose products a register sums up
constexpr int64_t kBlockPixels = 16 * kRows;    // fewest pixels that are worth a copy of the kernel
constexpr int64_t kMostBlockPixels = 1024;      // most pixels of a block
constexpr int64_t kFrameFloats = 48 << 10;      // most floats of the source that a block should read

// A run of memory that the window of every pixel reads, in floats from the beginning of the window.
struct Segment {
  int64_t offset;
  int64_t count;
};

// A register tile's operands: sums[r][c] = sum over the segments' floats k of pixels[r][k] * b[number of k][c].
struct Product {
  const float* const* pixels;
  const Segment* segments;
  int64_t segment_count;
  const float* b;  // as wide as the tile
};

template <int kR, int kV>
JAXCNN_INLINE void reset(Vec (&sums)[kR][kV]) {
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sums[r][v] = Vec{};
}

// Writes a register tile to the rows of the result if `first`, else adds the tile. Each row has `columns` columns.
// `steps` are the steps of an epilogue from the tile's first column on, or null.
template <int kR, int kV>
JAXCNN_INLINE void put(float* const* rows, Vec (&sums)[kR][kV], int64_t columns, bool first,
                       const RegisterSteps* steps = nullptr) {
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) {
    const int64_t lanes = least(kLanes, columns - v * kLanes);
    if (lanes <= 0) break;
    const Vec scale = steps ? steps->scales(v * kLanes, lanes) : Vec{};
    const Vec bias = steps ? steps->biases(v * kLanes, lanes) : Vec{};
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      float* const to = rows[r] + v * kLanes;
      const Vec sum = first ? sums[r][v] : load_some(to, lanes) + sums[r][v];
      store_some(to, steps ? steps->apply(sum, scale, bias, to, lanes) : sum, lanes);
    }
  }
}

// The register tile of products of pixels' windows.
struct PixelTile {
  template <int kR, int kV>
  static __attribute__((noinline)) void run(const Product& in, float* const* rows, int64_t columns, bool first,
                                            const RegisterSteps* steps) {
    Vec sums[kR][kV];
    reset(sums);
    const char* pixels[kR];
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) pixels[r] = reinterpret_cast<const char*>(in.pixels[r]);
    const float* b = in.b;
    for (const Segment *s = in.segments, *stop = s + in.segment_count; s < stop; ++s) {
      int64_t k = s->offset * 4;
      const int64_t end = k + s->count * 4;
      for (; k != end; k += 4, b += kV * kLanes) {
#if defined(__x86_64__)
        // All rows share one index. Without this line the compiler advances a pointer for each row.
        __asm__("" : "+r"(k));
#endif
        Vec column[kV];
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kR; ++r) {
          const Vec value = splat(*reinterpret_cast<const float*>(pixels[r] + k));
#pragma GCC unroll 4
          for (int v = 0; v < kV; ++v) sums[r][v] += value * column[v];
        }
      }
    }
    put<kR, kV>(rows, sums, columns, first, steps);
  }
};

// The register tile of a kernel's gradient, which sums over pixels. Rows are floats of the windows, from `offset` on,
// and columns are channels of the results. With `kTurned` rows and columns change places.
template <bool kTurned>
struct GradientTile {
  template <int kR, int kV>
  static __attribute__((noinline)) void run(const float* const* pixels, int64_t offset, const float* channels,
                                            int64_t pitch, int64_t depth, float* const* rows, int64_t columns,
                                            bool first) {
    Vec sums[kR][kV];
    reset(sums);
    for (int64_t k = 0; k < depth; ++k, channels += pitch) {
      const float* const window = pixels[k] + offset;
      const float *const a = kTurned ? channels : window, *const b = kTurned ? window : channels;
      Vec column[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) column[v] = load(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
        const Vec value = splat(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) sums[r][v] += value * column[v];
      }
    }
    put<kR, kV>(rows, sums, columns, first);
  }
};

// Runs a register tile of `rows` rows, at most kRows, and 1 or 2 vectors.
template <typename Tile, int kR = kRows, typename... Arguments>
JAXCNN_INLINE void run_tile(int64_t rows, int64_t vectors, const Arguments&... arguments) {
  if constexpr (kR > 1) {
    if (rows < kR) return run_tile<Tile, kR - 1>(rows, vectors, arguments...);
  }
  if (vectors == 1) return Tile::template run<kR, 1>(arguments...);
  Tile::template run<kR, 2>(arguments...);
}

// Ranges of a slide's results, each computed by one task: parts of a row, or parts of all results in order.
struct PixelBlocks {
  int64_t row, pixels, parts, count;

  PixelBlocks(const Slide& slide, int64_t wanted) {
    row = slide.axis[2].results;
    const int64_t all = slide.batch * slide.results();
    parts = row > wanted ? ceil_div(row, wanted) : 0;
    pixels = parts ? ceil_div(row, parts) : ceil_div(all, ceil_div(all, wanted));
    count = parts ? all / row * parts : ceil_div(all, pixels);
  }
  int64_t first(int64_t block) const { return parts ? block / parts * row + block % parts * pixels : block * pixels; }
  int64_t end(int64_t block, int64_t all) const {
    return least(first(block) + pixels, parts ? (block / parts + 1) * row : all);
  }
};

// The memory that the windows of a block's pixels read: the source itself if no window reaches beyond its edges, else a
// copy of the rows that the windows reach, with zeros for padding. A tap has the same distance from the
// beginning of the window in all windows.
class Frame {
 public:
  // `copied` forces a copy, which is long enough to read a whole vector at the end of any window.
  Frame(const Slide& slide, const PixelBlocks& blocks, bool copied = false)
      : slide_(slide), whole_rows_(!blocks.parts) {
    const int64_t width = slide.axis[2].results;
    const int64_t all_rows = slide.batch * slide.results() / width;
    const int64_t rows = whole_rows_ ? least((blocks.pixels + width - 2) / width + 1, all_rows) : 1;
    const int64_t results[3] = {1, rows, whole_rows_ ? width : blocks.pixels};
    in_place_ = !copied;
    for (int a = 0; a < 3; ++a) {
      const SlideAxis& axis = slide.axis[a];
      const int64_t last = axis.source_first + (axis.results - 1) * axis.source_stride + reach(axis) - 1;
      in_place_ = in_place_ && axis.source_first >= 0 && last < axis.source_size;
      const int64_t span = reach(axis) + (results[a] - 1) * axis.source_stride;
      apart_[a] = span > results[a] * axis.taps;
    }
    if (slide.taps() == 0) in_place_ = true;
    for (int a = 0; a < 3; ++a) {
      const SlideAxis& axis = slide.axis[a];
      stride_[a] = in_place_ || !apart_[a] ? axis.source_stride : axis.taps;
      step_[a] = in_place_ || !apart_[a] ? axis.source_step : 1;
    }
    if (in_place_) {
      pitch_[2] = slide.source_pixel();
      pitch_[1] = slide.axis[2].source_size * pitch_[2];
      pitch_[0] = slide.axis[1].source_size * pitch_[1];
      floats_ = 0;
    } else {
      // The rows of one plane follow each other. Each row has a line for every tap of the depth.
      pitch_[2] = slide.source_channels;
      pitch_[0] = size(2, results[2]) * pitch_[2];
      pitch_[1] = size(0, 1) * pitch_[0];
      const int64_t planes = ceil_div(rows - 1, slide.axis[1].results) + 1;
      const int64_t overlap = apart_[1] ? 0 : most(0, reach(slide.axis[1]) - slide.axis[1].source_stride);
      const int64_t per_row = apart_[1] ? slide.axis[1].taps : slide.axis[1].source_stride;
      floats_ = (rows * per_row + planes * overlap) * pitch_[1] + (copied ? kColumns : 0);
    }
    merged_ = step_[2] == 1 && pitch_[2] == slide.source_channels;
  }

  int64_t floats() const { return floats_; }  // of the copy
  // Floats of a run that each window reads, and the number of runs.
  int64_t run() const { return slide_.source_channels * (merged_ ? slide_.axis[2].taps : 1); }
  int64_t runs() const { return merged_ ? slide_.axis[0].taps * slide_.axis[1].taps : slide_.taps(); }

  // Returns the floats from the beginning of a window to one of its runs.
  int64_t offset(int64_t run) const {
    const int64_t columns = merged_ ? 1 : slide_.axis[2].taps, rows = slide_.axis[1].taps;
    const int64_t w = run % columns, h = run / columns % rows, d = run / columns / rows;
    return d * step_[0] * pitch_[0] + h * step_[1] * pitch_[1] + w * step_[2] * pitch_[2];
  }

  // Writes the segments of the pairs [begin, end) of the summed axis, and returns their number.
  int64_t segments(int64_t begin, int64_t end, Segment* to) const {
    int64_t count = 0;
    for (const int64_t size = run(); begin < end; ++count) {
      const int64_t number = begin / size, from = begin - number * size;
      to[count] = {offset(number) + from, least(size - from, end - begin)};
      begin += to[count].count;
    }
    return count;
  }

  // Finds the range of pairs of the summed axis outside of which the windows of results [first, end) read padding.
  void pairs_inside(int64_t first, int64_t end, int64_t* begin, int64_t* stop) const {
    const SlideAxis* const ha = slide_.axis + 1;
    const int64_t row_pairs = slide_.axis[2].taps * slide_.source_channels, pairs = ha->taps * row_pairs;
    *begin = in_place_ || slide_.axis[0].taps > 1 ? 0 : pairs;
    *stop = *begin ? 0 : slide_.taps() * slide_.source_channels;
    if (*begin == 0) return;
    const int64_t width = slide_.axis[2].results;
    for (int64_t line = first / width; line <= (end - 1) / width; ++line) {
      int64_t low, high;
      taps_inside(*ha, line % ha->results, &low, &high);
      if (low == high) continue;
      *begin = least(*begin, low * row_pairs);
      *stop = most(*stop, high * row_pairs);
    }
  }

  // Writes the beginnings of the windows of results [first, end) to `pixels`. A frame that is a copy first copies the
  // rows that the windows reach to `memory`. `source` is the group's first channel in the first image.
  void read(const float* source, int64_t first, int64_t end, float* memory, const float** pixels) const {
    const SlideAxis *da = slide_.axis, *ha = slide_.axis + 1, *wa = slide_.axis + 2;
    if (slide_.taps() == 0) {
      for (int64_t i = first; i < end; ++i) *pixels++ = source;
      return;
    }
    while (first < end) {
      const int64_t line = first / wa->results, w = first - line * wa->results;
      const int64_t plane = line / ha->results, h = line - plane * ha->results;
      const int64_t image = plane / da->results, d = plane - image * da->results;
      const int64_t rows = least(ha->results - h, ceil_div(w + end - first, wa->results));
      const int64_t column = whole_rows_ || in_place_ ? 0 : w;
      const float* base = memory;
      if (in_place_) {
        base = source + image * da->source_size * pitch_[0] + (d * da->source_stride + da->source_first) * pitch_[0] +
               (h * ha->source_stride + ha->source_first) * pitch_[1] + wa->source_first * pitch_[2];
      } else {
        copy_rows(source, image, d, h, rows, column, whole_rows_ ? wa->results : end - first, memory);
        memory += size(1, rows) * pitch_[1];
      }
      for (int64_t r = 0, from = w; r < rows; ++r, from = 0) {
        const int64_t to = least(wa->results, from + end - first);
        for (int64_t i = from; i < to; ++i) {
          *pixels++ = base + r * stride_[1] * pitch_[1] + (i - column) * stride_[2] * pitch_[2];
        }
        first += to - from;
      }
    }
  }

 private:
  static int64_t reach(const SlideAxis& axis) { return (axis.taps - 1) * axis.source_step + 1; }
  // Returns the pixels of the copy on an axis that has `results` results.
  int64_t size(int a, int64_t results) const {
    const SlideAxis& axis = slide_.axis[a];
    return apart_[a] ? results * axis.taps : reach(axis) + (results - 1) * axis.source_stride;
  }
  // Returns the source's pixel that is pixel i of the copy, where the copy begins at result `first`.
  int64_t source_of(int a, int64_t first, int64_t i) const {
    const SlideAxis& axis = slide_.axis[a];
    const int64_t from = first * axis.source_stride + axis.source_first;
    return from + (apart_[a] ? i / axis.taps * axis.source_stride + i % axis.taps * axis.source_step : i);
  }
  static bool inside(int64_t at, const SlideAxis& axis) { return at >= 0 && at < axis.source_size; }

  void copy_rows(const float* source, int64_t image, int64_t d, int64_t h, int64_t rows, int64_t w, int64_t columns,
                 float* to) const {
    const SlideAxis *da = slide_.axis, *ha = slide_.axis + 1, *wa = slide_.axis + 2;
    const int64_t channels = slide_.source_channels, pixel = slide_.source_pixel(), width = size(2, columns);
    const int64_t left = source_of(2, w, 0);
    const int64_t low = least(width, most(0, -left)), high = most(low, least(width, wa->source_size - left));
    for (int64_t i = 0, height = size(1, rows); i < height; ++i) {
      const int64_t sh = source_of(1, h, i);
      for (int64_t td = 0; td < da->taps; ++td, to += pitch_[0]) {
        const int64_t sd = source_of(0, d, 0) + td * da->source_step;
        if (!inside(sd, *da) || !inside(sh, *ha)) {
          clear(to, width * channels);
          continue;
        }
        const int64_t row = (image * da->source_size + sd) * ha->source_size + sh;
        const float* const line = source + row * wa->source_size * pixel;
        if (apart_[2]) {
          for (int64_t j = 0; j < width; ++j) {
            const int64_t sw = source_of(2, w, j);
            inside(sw, *wa) ? copy(to + j * channels, line + sw * pixel, channels) : clear(to + j * channels, channels);
          }
          continue;
        }
        clear(to, low * channels);
        if (pixel == channels) {
          if (low < high) copy(to + low * channels, line + (left + low) * pixel, (high - low) * channels);
        } else {
          for (int64_t j = low; j < high; ++j) copy(to + j * channels, line + (left + j) * pixel, channels);
        }
        clear(to + high * channels, (width - high) * channels);
      }
    }
  }

  const Slide& slide_;
  const bool whole_rows_;
  bool in_place_, merged_, apart_[3];
  int64_t stride_[3], step_[3], pitch_[3], floats_;
};

// Copies the kernel's rows [begin, end) of the summed axis and `columns` result channels from `column` on, in rows
// of kV vectors.
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

// Writes the addresses of the results [first, end) of a slide.
inline void find_results(const Slide& slide, int64_t first, int64_t end, float* result, float** places) {
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  while (first < end) {
    const int64_t line = first / wa->results, w = first - line * wa->results;
    const int64_t plane = line / ha->results, h = line - plane * ha->results;
    const int64_t image = plane / da->results, d = plane - image * da->results;
    const int64_t rd = image * da->result_size + da->result_first + d * da->result_step;
    const int64_t rh = rd * ha->result_size + ha->result_first + h * ha->result_step;
    float* const row = result + (rh * wa->result_size + wa->result_first) * slide.result_pixel();
    const int64_t to = least(wa->results, w + end - first), step = wa->result_step * slide.result_pixel();
    for (int64_t i = w; i < to; ++i) *places++ = row + i * step;
    first += to - w;
  }
}

// Returns whether all `count` floats, a multiple of kLanes, are finite.
inline bool is_finite(const float* from, int64_t count) {
  Vec sum = {};
  for (int64_t i = 0; i < count; i += kLanes) sum += load(from + i) * 0.0f;
  for (int lane = 0; lane < kLanes; ++lane)
    if (sum[lane] != 0.0f) return false;
  return true;
}

// Computes a slide by products of matrices.
inline void slide_dense(const Slide& slide, const float* source, const float* kernel, float* result,
                        const Epilogue& epilogue, TaskRunner& runner) {
  const int64_t all = slide.batch * slide.results(), columns = slide.result_channels;
  const int64_t depth = slide.taps() * slide.source_channels, panels = ceil_div(columns, kColumns);
  // Tasks are blocks of pixels and ranges of columns: enough tasks for an even share, and blocks that are worth a copy.
  const int64_t read =
      slide.source_channels * slide.axis[0].taps * slide.axis[1].source_stride * slide.axis[2].source_stride;
  const int64_t wanted_tasks = runner.threads() > 1 ? 4 * runner.threads() : 1;
  int64_t wanted = least(kMostBlockPixels, most(kBlockPixels, kFrameFloats / most(1, read))), ranges = 1;
  const auto tasks = [&] { return ceil_div(all, wanted) * ranges * slide.groups; };
  while (tasks() < wanted_tasks && wanted > kBlockPixels) wanted = most(kBlockPixels, wanted / 2);
  while (tasks() < wanted_tasks && ranges < panels) ++ranges;
  if (tasks() < wanted_tasks) {
    wanted = most(least(wanted, 4 * kRows), ceil_div(all, ceil_div(wanted_tasks, ranges * slide.groups)));
  }
  // Every thread gets the same number of blocks.
  if (ranges * slide.groups == 1) {
    wanted = ceil_div(all, ceil_div(ceil_div(all, wanted), runner.threads()) * runner.threads());
  }
  const int64_t range_panels = ceil_div(panels, ranges);
  const PixelBlocks blocks(slide, wanted);
  const Frame frame(slide, blocks);
  const bool plain = is_empty(epilogue), in_registers = !plain && RegisterSteps::covers(epilogue);
  const int64_t chunks = most(1, ceil_div(depth, kDepth)), chunk = ceil_div(depth, chunks);

  parallel(runner, blocks.count * ranges * slide.groups, [&](int64_t task) {
    const int64_t range = task % ranges, group = task / ranges % slide.groups, block = task / ranges / slide.groups;
    const int64_t first = blocks.first(block), end = blocks.end(block, all);
    const int64_t first_panel = range * range_panels, last_panel = least(first_panel + range_panels, panels);
    if (first >= end || first_panel >= last_panel) return;
    const int64_t tiles = ceil_div(end - first, kRows);
    const float** const pixels = Scratch::array<const float*>(0, blocks.pixels);
    float** const places = Scratch::array<float*>(1, blocks.pixels);
    Segment* const segments = Scratch::array<Segment>(2, kDepth);
    float* const packed = Scratch::floats(4, kDepth * kColumns);
    frame.read(source + group * slide.source_channels, first, end, Scratch::floats(5, frame.floats()), pixels);
    find_results(slide, first, end, result + group * columns, places);

    // Tiles have even sizes: 13 pixels are 7 and 6, not 12 and 1.
    const auto first_of = [&](int64_t tile) { return (end - first) * tile / tiles; };
    // Each tile needs a range of pairs of the summed axis: all other products are zeros if the kernel is finite.
    int64_t (*const needed)[2] = Scratch::array<int64_t[2]>(3, tiles);
    bool all_needed = true;
    for (int64_t t = 0; t < tiles; ++t) {
      frame.pairs_inside(first + first_of(t), first + first_of(t + 1), &needed[t][0], &needed[t][1]);
      all_needed = all_needed && needed[t][0] == 0 && needed[t][1] == depth;
    }

    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panel * kColumns, width = least(kColumns, columns - column);
      const int64_t vectors = width > kLanes ? 2 : 1, pitch = vectors * kLanes;
      for (int64_t begin = 0; begin == 0 || begin < depth; begin += chunk) {
        const int64_t stop = least(begin + chunk, depth);
        const auto pack = vectors == 2 ? pack_columns<2> : pack_columns<1>;
        pack(slide, kernel, group, begin, stop, column, width, packed);
        const bool whole = all_needed || !is_finite(packed, (stop - begin) * pitch);
        const bool last = stop == depth;
        const RegisterSteps steps(epilogue, group * columns + column, result);
        const RegisterSteps* const used = last && in_registers ? &steps : nullptr;
        int64_t chosen_from = -1, chosen_to = -1, count = 0;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t from = whole ? begin : least(stop, most(begin, needed[t][0]));
          const int64_t to = whole ? stop : most(from, least(stop, needed[t][1]));
          if (from != chosen_from || to != chosen_to) count = frame.segments(from, to, segments);
          chosen_from = from;
          chosen_to = to;
          const int64_t row = first_of(t), rows = first_of(t + 1) - row;
          float* results[kRows];
          for (int64_t r = 0; r < rows; ++r) results[r] = places[row + r] + column;
          const Product in = {pixels + row, segments, count, packed + (from - begin) * pitch};
          if (count > 0 || begin == 0 || used) {
            run_tile<PixelTile>(rows, vectors, in, results, width, begin == 0, used);
          }
          if (last && !plain && !in_registers) finish(results, rows, width, group * columns + column, result, epilogue);
        }
        if (depth == 0) break;
      }
    }
  });
}

constexpr int64_t kSpreadFloats = 1 << 19;  // most floats of partial sums at once

// Returns whether a slide is faster when each tap of a row has columns of its own, which fills the lanes that few
// result channels leave empty.
inline bool pays_to_spread(const Slide& slide) {
  const SlideAxis& wa = slide.axis[2];
  if (slide.groups > 1 || wa.taps < 2 || wa.source_stride > 1) return false;
  const int64_t width = wa.results + (wa.taps - 1) * wa.source_step;
  const int64_t spread = ceil_div(wa.taps * slide.result_channels, kLanes) * width;
  const int64_t plain = ceil_div(slide.result_channels, kLanes) * wa.taps * wa.results;
  // The additions take a few loads for each tap.
  constexpr int64_t kLoads = 16;
  const int64_t summed = slide.axis[0].taps * slide.axis[1].taps * slide.source_channels;
  return 4 * spread <= 3 * plain && (plain - spread) * summed >= kLoads * wa.taps * wa.results;
}

// Computes a slide with columns (tap of a row, channel), then adds up the columns of each result.
inline void slide_spread(const Slide& slide, const float* source, const float* kernel, float* result,
                         const Epilogue& epilogue, TaskRunner& runner) {
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const int64_t taps = wa->taps, channels = slide.result_channels, columns = taps * channels;
  const int64_t sources = slide.source_channels, step = wa->source_step;
  Slide wide = slide;
  wide.transposed = false;
  wide.result_channels = columns;
  wide.axis[2].taps = 1;
  wide.axis[2].results = wa->results + (taps - 1) * step;
  for (int a = 0; a < 3; ++a) {
    wide.window[a] = wide.axis[a].taps;
    wide.axis[a].kernel_first = wide.axis[a].result_first = 0;
    wide.axis[a].kernel_step = wide.axis[a].result_step = 1;
  }
  float* const weights = Scratch::floats(6, wide.taps() * sources * columns);
  parallel(runner, wide.taps(), [&](int64_t task) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t from = slide.kernel_tap(task / ha->taps, task % ha->taps, tap) * sources * channels;
      float* const to = weights + task * sources * columns + tap * channels;
      for (int64_t c = 0; c < sources; ++c) {
        for (int64_t n = 0; n < channels; ++n) {
          to[c * columns + n] = kernel[from + (slide.transposed ? n * sources + c : c * channels + n)];
        }
      }
    }
  });

  const int64_t line = wide.axis[2].results * columns;
  const int64_t rows = least(ha->results, most(1, kSpreadFloats / line)), plane = line * ha->results;
  const int64_t planes = rows < ha->results ? 1 : least(da->results, most(1, kSpreadFloats / plane));
  const int64_t images = planes < da->results ? 1 : least(slide.batch, most(1, kSpreadFloats / (plane * planes)));
  float* const sums = Scratch::floats(7, images * planes * rows * line);
  const bool plain = is_empty(epilogue);
  const auto slide_part = [&](int64_t image, int64_t d, int64_t h) {
    Slide part = wide;
    part.batch = least(images, slide.batch - image);
    part.axis[0].results = least(planes, da->results - d);
    part.axis[1].results = least(rows, ha->results - h);
    part.axis[0].source_first += d * da->source_stride;
    part.axis[1].source_first += h * ha->source_stride;
    for (SlideAxis& axis : part.axis) axis.result_size = axis.results;
    const int64_t image_floats = da->source_size * ha->source_size * wa->source_size * sources;
    slide_dense(part, source + image * image_floats, weights, sums, {}, runner);
    parallel(runner, part.batch * part.axis[0].results * part.axis[1].results, [&](int64_t task) {
      const int64_t rest = task / part.axis[1].results, rh = h + task % part.axis[1].results;
      const int64_t rd = d + rest % part.axis[0].results, ri = image + rest / part.axis[0].results;
      const int64_t row = (ri * da->result_size + da->result_first + rd * da->result_step) * ha->result_size +
                          ha->result_first + rh * ha->result_step;
      float* to = result + (row * wa->result_size + wa->result_first) * channels;
      const float* from = sums + task * line;
      for (int64_t w = 0; w < wa->results; ++w, from += columns, to += wa->result_step * channels) {
        for (int64_t n = 0; n < channels; n += kLanes) {
          const int64_t lanes = least(kLanes, channels - n);
          Vec sum = load_some(from + n, lanes);
          for (int64_t tap = 1; tap < taps; ++tap) {
            sum += load_some(from + tap * (step * columns + channels) + n, lanes);
          }
          store_some(to + n, sum, lanes);
        }
        if (!plain) finish(&to, 1, channels, 0, result, epilogue);
      }
    });
  };
  for (int64_t image = 0; image < slide.batch; image += images)
    for (int64_t d = 0; d < da->results; d += planes)
      for (int64_t h = 0; h < ha->results; h += rows) slide_part(image, d, h);
}

constexpr int64_t kPartPixels = 2048;  // fewest pixels of a part of a kernel's gradient with sums of its own
constexpr int64_t kMostParts = 8;      // most such parts
constexpr int64_t kGradientPixels = 192;  // pixels that a register of a kernel's gradient sums over
constexpr int64_t kGradientPanels = 4;   // panels of results that a tile of windows is multiplied by in turn

// Computes the role "kernel": a product of windows and results that sums over the pixels.
inline void kernel_dense(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const Slide slide = forward_slide(p);
  const PixelBlocks blocks(slide, kGradientPixels);
  const int64_t all = slide.batch * slide.results(), channels = slide.result_channels, groups = slide.groups;
  const Frame in_place(slide, blocks), copy(slide, blocks, true);
  // Rows of register tiles are floats of the windows and columns are channels of the results; `turned` exchanges them.
  const int64_t filled = ceil_div(channels, kLanes) * in_place.run() * in_place.runs();
  const bool turned = ceil_div(copy.run(), kLanes) * channels * copy.runs() < filled;
  const Frame& frame = turned ? copy : in_place;
  const int64_t run = frame.run(), runs = frame.runs();
  const int64_t rows = turned ? channels : run, columns = turned ? run : channels;
  // Tiles have even sizes: 16 rows are 8 and 8, not 12 and 4.
  const int64_t row_tiles = ceil_div(rows, kRows), tile_rows = ceil_div(rows, row_tiles);
  const int64_t panels = ceil_div(columns, kColumns), tiles = runs * row_tiles;

  // The parts of the pixels depend on the shape alone, so that results do not depend on the number of threads.
  constexpr int64_t kFewTiles = 64;
  int64_t parts = tiles * panels * groups >= kFewTiles ? 1 : least(kMostParts, all / kPartPixels);
  const int64_t part_blocks = ceil_div(blocks.count, most(parts, 1));
  parts = ceil_div(blocks.count, part_blocks);
  const int64_t size = runs * run * groups * channels;
  float* const sums = parts == 1 && !turned ? kernel : Scratch::floats(3, parts * size);
  // Floats from a row of a tile to the next, from a run to the next, and from a group to the next.
  const int64_t row_pitch = turned ? runs * run : groups * channels, run_pitch = turned ? run : run * groups * channels;
  const int64_t group_pitch = turned ? runs * run * channels : channels;

  // Tasks are ranges of tiles, and ranges of panels if tiles are few.
  const int64_t wanted = runner.threads() > 1 ? 4 * runner.threads() : 1;
  int64_t ranges = 1, panel_ranges = 1;
  while (parts * groups * ranges < wanted && ranges < tiles) ++ranges;
  while (parts * groups * ranges * panel_ranges < wanted && panel_ranges < panels) ++panel_ranges;
  const int64_t range_tiles = ceil_div(tiles, ranges), range_panels = ceil_div(panels, panel_ranges);

  parallel(runner, parts * groups * ranges * panel_ranges, [&](int64_t task) {
    const int64_t panel_range = task % panel_ranges, range = task / panel_ranges % ranges;
    const int64_t group = task / panel_ranges / ranges % groups, part = task / panel_ranges / ranges / groups;
    const int64_t first_tile = range * range_tiles, last_tile = least(first_tile + range_tiles, tiles);
    const int64_t first_panel = panel_range * range_panels, last_panel = least(first_panel + range_panels, panels);
    const int64_t first_block = part * part_blocks, last_block = least(first_block + part_blocks, blocks.count);
    if (first_tile >= last_tile || first_panel >= last_panel) return;
    float* const target = sums + part * size + group * group_pitch;
    const float** const pixels = Scratch::array<const float*>(0, blocks.pixels);
    float* const packed = Scratch::floats(4, blocks.pixels * kColumns * kGradientPanels);
    float* const memory = Scratch::floats(5, frame.floats());
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t first = blocks.first(block), count = blocks.end(block, all) - first;
      frame.read(x + group * slide.source_channels, first, first + count, memory, pixels);
      const float* const from = y + first * slide.result_pixel() + group * channels;
      // Each tile of windows is multiplied by several panels, while its floats are in the first-level cache.
      for (int64_t some = first_panel; some < last_panel; some += kGradientPanels) {
        const int64_t end = least(some + kGradientPanels, last_panel), pitch = count * kColumns;
        const auto width_of = [&](int64_t panel) { return least(kColumns, columns - panel * kColumns); };
        for (int64_t panel = some; panel < (turned ? some : end); ++panel) {
          const int64_t width = width_of(panel);
          float* to = packed + (panel - some) * pitch;
          for (int64_t i = 0; i < count; ++i) {
            const float* const pixel = from + i * slide.result_pixel() + panel * kColumns;
            for (int64_t v = 0; v < width; v += kLanes, to += kLanes) store(to, load_some(pixel + v, width - v));
          }
        }
        for (int64_t t = first_tile; t < last_tile; ++t) {
          const int64_t number = t / row_tiles, row = t % row_tiles * tile_rows, height = least(tile_rows, rows - row);
          for (int64_t panel = some; panel < (height > 0 ? end : some); ++panel) {
            const int64_t column = panel * kColumns, width = width_of(panel), vectors = width > kLanes ? 2 : 1;
            float* to[kRows];
            for (int64_t r = 0; r < height; ++r) to[r] = target + number * run_pitch + (row + r) * row_pitch + column;
            const int64_t offset = frame.offset(number) + (turned ? column : row);
            if (turned) {
              run_tile<GradientTile<true>>(height, vectors, pixels, offset, from + row, slide.result_pixel(), count, to,
                                           width, block == first_block);
            } else {
              run_tile<GradientTile<false>>(height, vectors, pixels, offset, packed + (panel - some) * pitch,
                                            vectors * kLanes, count, to, width, block == first_block);
            }
          }
        }
      }
    }
  });
  if (sums == kernel) return;
  constexpr int64_t kSlice = 4096;
  const int64_t pitch = groups * channels;
  parallel(runner, ceil_div(size, kSlice), [&](int64_t task) {
    for (int64_t i = task * kSlice, end = least(i + kSlice, size); i < end; ++i) {
      const float* const from = sums + (turned ? i % pitch * (runs * run) + i / pitch : i);
      float sum = *from;
      for (int64_t part = 1; part < parts; ++part) sum += from[part * size];
      kernel[i] = sum;
    }
  });
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
