// Convolutions whose groups have many channels, as products of matrices. Rows are pixels, the summed axis is (tap,
// channel), columns are result channels.
#pragma once

#include "frame.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

constexpr int64_t kDepth = 320;             // most (tap, channel) pairs whose products a register sums up
constexpr int64_t kBlockPixels = 16 * kRows;  // fewest pixels that are worth a copy of the kernel
constexpr int64_t kMostBlockPixels = 1024;  // most pixels of a block
constexpr int64_t kFrameFloats = 64 << 10;  // most floats of the source that a block should read
constexpr int64_t kPackedPanels = 4;        // panels of the kernel that are packed together

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

// Runs a register tile of `rows` rows, at most kRows, and 1 or 2 vectors.
template <typename Tile, int kR = kRows, typename... Arguments>
JAXCNN_INLINE void run_tile(int64_t rows, int64_t vectors, const Arguments&... arguments) {
  if constexpr (kR > 1) {
    if (rows < kR) return run_tile<Tile, kR - 1>(rows, vectors, arguments...);
  }
  if (vectors == 1) return Tile::template run<kR, 1>(arguments...);
  Tile::template run<kR, 2>(arguments...);
}

// Copies the kernel's rows [begin, end) of the summed axis and `columns` result channels from `column` on, panel after
// panel. A panel's rows have kColumns floats, those of a last panel of few channels kLanes.
inline void pack_columns(const Slide& slide, const float* kernel, int64_t group, int64_t begin, int64_t end,
                         int64_t column, int64_t columns, float* to) {
  const int64_t channels = slide.source_channels;
  const int64_t source_step = slide.transposed ? 1 : slide.result_pixel();
  const int64_t result_step = slide.transposed ? slide.source_pixel() : 1;
  const int64_t tap_size = slide.transposed ? slide.result_channels * slide.source_pixel()
                                            : slide.source_channels * slide.result_pixel();
  const int64_t offset = group * (slide.transposed ? slide.source_channels : slide.result_channels);
  constexpr int64_t kRowsTogether = 16, kRowsAhead = 24;
  const int64_t panel_floats = (end - begin) * kColumns, panels = columns / kColumns, rest = columns % kColumns;
  const int64_t rest_width = ceil_div(rest, kLanes) * kLanes;
  for (int64_t k = begin; k < end;) {
    const int64_t tap = k / channels, from = k - tap * channels, count = least(channels - from, end - k);
    const int64_t tw = tap % slide.axis[2].taps, number = tap / slide.axis[2].taps;
    const int64_t th = number % slide.axis[1].taps, td = number / slide.axis[1].taps;
    const float* const base = kernel + offset + slide.kernel_tap(td, th, tw) * tap_size + from * source_step +
                        column * result_step;
    float* const rows = to + (k - begin) * kColumns;
    float* const rest_rows = to + panels * panel_floats + (k - begin) * rest_width;
    if (!slide.transposed) {
      for (int64_t first = 0; first < count; first += kRowsTogether) {
        const int64_t last = least(first + kRowsTogether, count);
        for (int64_t p = 0; p < panels; ++p) {
          const float* row = base + first * source_step + p * kColumns;
          float* at = rows + p * panel_floats + first * kColumns;
          for (int64_t c = first; c < last; ++c, row += source_step, at += kColumns) {
            __builtin_prefetch(row + kRowsAhead * source_step);
            for (int v = 0; v < kColumns; v += kLanes) store(at + v, load(row + v));
          }
        }
        for (int64_t v = 0; v < rest; v += kLanes) {
          const float* row = base + first * source_step + panels * kColumns + v;
          float* at = rest_rows + first * rest_width + v;
          for (int64_t c = first; c < last; ++c, row += source_step, at += rest_width) {
            store(at, load_some(row, rest - v));
          }
        }
      }
    } else {
      for (int64_t v = 0; v < columns; v += kLanes) {
        const int64_t lines = least(kLanes, columns - v), p = v / kColumns;
        const int64_t width = p < panels ? kColumns : rest_width;
        float* const at = (p < panels ? rows + p * panel_floats : rest_rows) + v % kColumns;
        for (int64_t c = 0; c < count; c += kLanes) {
          const int64_t size = least(kLanes, count - c);
          Vec block[kLanes];
#pragma GCC unroll 16
          for (int n = 0; n < kLanes; ++n) {
            block[n] = n < lines ? load_some(base + (v + n) * result_step + c, size) : Vec{};
          }
          transpose(block);
          for (int64_t i = 0; i < size; ++i) store(at + (c + i) * width, block[i]);
        }
      }
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

// Asks the first-level cache for what a tile of `rows` pixels will read.
inline void read_ahead(const float* const* pixels, int64_t rows, const Segment* segments, int64_t count) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t s = 0; s < count; ++s) {
      const float* const from = pixels[r] + segments[s].offset;
      for (int64_t i = 0; i < segments[s].count; i += kLineFloats) __builtin_prefetch(from + i);
    }
  }
}

// The tasks of a product of matrices: each is a block of the rows and a range of the panels of columns.
struct Division {
  int64_t blocks = 1, ranges = 1;

  // Takes the division that moves least among those that have enough tasks and at most `most_rows` rows in a block.
  // Each block packs all columns, `columns` floats, and each range reads all rows, `row` floats in each.
  Division(int64_t rows, int64_t most_rows, int64_t row, int64_t panels, int64_t columns, int64_t tasks) {
    constexpr int64_t kPacking = 4;  // time to pack a float, over that to read it
    const int64_t most_ranges = most(1, least(panels, tasks));
    int64_t least_moved = INT64_MAX;
    for (int64_t count = 1; count <= most_ranges; ++count) {
      const int64_t parts = most(ceil_div(rows, most_rows), least(ceil_div(tasks, count), ceil_div(rows, kRows)));
      const int64_t moved = kPacking * parts * columns + count * rows * row;
      if (moved >= least_moved || (parts * count < tasks && count < most_ranges)) continue;
      least_moved = moved;
      blocks = parts;
      ranges = count;
    }
  }
};

// Computes a slide by products of matrices.
inline void slide_dense(const Slide& slide, const float* source, const float* kernel, float* result,
                        const Epilogue& epilogue, TaskRunner& runner) {
  const int64_t all = slide.batch * slide.results(), columns = slide.result_channels;
  const int64_t depth = slide.taps() * slide.source_channels, panels = ceil_div(columns, kColumns);
  const int64_t chunks = most(1, ceil_div(depth, kDepth)), chunk = ceil_div(depth, chunks);
  const bool in_place = reads_inside(slide);
  // Floats that a block reads for each pixel: a copy is made at once, the source itself is read chunk by chunk.
  const int64_t copied =
      slide.source_channels * slide.axis[0].taps * slide.axis[1].source_stride * slide.axis[2].source_stride;
  const int64_t held = most(1, in_place ? chunk : copied);
  const int64_t most_pixels = least(kMostBlockPixels, most(kBlockPixels, kFrameFloats / held));
  const int64_t threads = runner.threads(), tasks = threads > 1 ? ceil_div(4 * threads, slide.groups) : 1;
  Division division(all, most_pixels, in_place ? depth : copied, panels, depth * columns, tasks);
  // Every thread gets the same number of blocks.
  if (division.ranges * slide.groups == 1) division.blocks = ceil_div(division.blocks, threads) * threads;
  const PixelBlocks blocks(slide, ceil_div(all, division.blocks), in_place);
  const int64_t ranges = division.ranges;
  const Frame frame(slide, blocks);
  const bool plain = is_empty(epilogue), in_registers = !plain && RegisterSteps::covers(epilogue);

  parallel(runner, blocks.count * ranges * slide.groups, [&](int64_t task) {
    const int64_t range = task % ranges, group = task / ranges % slide.groups, block = task / ranges / slide.groups;
    const int64_t first = blocks.first(block), end = blocks.end(block, all), count = end - first;
    const int64_t first_panel = part_begin(panels, ranges, range), last_panel = part_begin(panels, ranges, range + 1);
    if (count <= 0) return;
    const int64_t tiles = ceil_div(count, kRows);
    const float** const pixels = Scratch::array<const float*>(0, blocks.pixels);
    float** const places = Scratch::array<float*>(1, blocks.pixels);
    Segment* const segments = Scratch::array<Segment>(2, kDepth);
    float* const all_packed = Scratch::floats(4, kPackedPanels * chunk * kColumns);
    frame.read(source + group * slide.source_channels, first, end, Scratch::floats(5, frame.floats()), pixels);
    find_results(slide, first, end, result + group * columns, places);

    // Tiles have even sizes: 13 pixels are 7 and 6, not 12 and 1. Each needs a range of pairs of the summed axis: all
    // other products are zeros if the kernel is finite.
    struct Tile {
      int64_t row, begin, stop;
    };
    Tile* const tile = Scratch::array<Tile>(3, tiles + 1);
    bool all_needed = true;
    for (int64_t t = 0; t <= tiles; ++t) tile[t].row = count * t / tiles;
    for (int64_t t = 0; t < tiles; ++t) {
      frame.pairs_inside(first + tile[t].row, first + tile[t + 1].row, &tile[t].begin, &tile[t].stop);
      all_needed = all_needed && tile[t].begin == 0 && tile[t].stop == depth;
    }

    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = c * chunk, stop = least(begin + chunk, depth);
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int64_t column = panel * kColumns, width = least(kColumns, columns - column);
        const int64_t vectors = width > kLanes ? 2 : 1, pitch = vectors * kLanes;
        const int64_t number = (panel - first_panel) % kPackedPanels;
        if (number == 0) {
          const int64_t some = least(least(last_panel * kColumns, columns) - column, kPackedPanels * kColumns);
          pack_columns(slide, kernel, group, begin, stop, column, some, all_packed);
        }
        const float* const packed = all_packed + number * ((stop - begin) * kColumns);
        const bool whole = all_needed || !is_finite(packed, (stop - begin) * pitch);
        const bool last = c + 1 == chunks;
        const RegisterSteps steps(epilogue, group * columns + column, result);
        const RegisterSteps* const used = last && in_registers ? &steps : nullptr;
        int64_t chosen_from = -1, chosen_to = -1, runs = 0;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t from = whole ? begin : least(stop, most(begin, tile[t].begin));
          const int64_t to = whole ? stop : most(from, least(stop, tile[t].stop));
          if (from != chosen_from || to != chosen_to) runs = frame.segments(from, to, segments);
          chosen_from = from;
          chosen_to = to;
          const int64_t row = tile[t].row, height = tile[t + 1].row - row;
          float* results[kRows];
          for (int64_t r = 0; r < height; ++r) results[r] = places[row + r] + column;
          if (in_place && panel == first_panel && panel + 1 < last_panel && t + 1 < tiles) {
            read_ahead(pixels + row + height, tile[t + 2].row - tile[t + 1].row, segments, runs);
          }
          const Product in = {pixels + row, segments, runs, packed + (from - begin) * pitch};
          if (runs > 0 || c == 0 || used) run_tile<PixelTile>(height, vectors, in, results, width, c == 0, used);
          if (last && !plain && !in_registers) {
            finish(results, height, width, group * columns + column, result, epilogue);
          }
        }
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

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
