// The gradients of the kernels of groups with many channels, as products of matrices that sum over the pixels.
#pragma once

#include "dense.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

constexpr int64_t kPartPixels = 1024;         // fewest pixels of a part with sums of its own
constexpr int64_t kMostParts = 8;             // most such parts
constexpr int64_t kMostPartFloats = 1 << 20;  // most floats of the sums of all parts
constexpr int64_t kGradientPixels = 192;      // pixels that a register sums over

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
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) __builtin_prefetch(rows[r], 1);
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

// One factor of the product: runs of floats that each pixel has, cut into units of a register tile's size.
struct Factor {
  int64_t run, runs;        // floats of a run, and the number of runs
  int64_t unit, run_units;  // floats of a unit, and units of a run
  int64_t pitch;            // floats from the sums of a float to those of the next

  Factor(int64_t run, int64_t runs, bool are_rows, int64_t pitch) : run(run), runs(runs), pitch(pitch) {
    // Rows have even sizes: 16 are 8 and 8, not 12 and 4.
    unit = are_rows ? ceil_div(run, ceil_div(run, kRows)) : kColumns;
    run_units = ceil_div(run, unit);
  }
  int64_t units() const { return runs * run_units; }
  int64_t begin(int64_t number) const { return number % run_units * unit; }
  int64_t size(int64_t number) const { return least(unit, run - begin(number)); }
  int64_t place(int64_t number) const { return (number / run_units * run + begin(number)) * pitch; }
};

// Copies `columns` floats of each of `count` pixels, panel after panel.
inline void pack_results(const float* from, int64_t count, int64_t pitch, int64_t columns, float* to) {
  for (int64_t i = 0; i < count; ++i, from += pitch, to += kColumns) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      store(to + c / kColumns * (count * kColumns) + c % kColumns, load_some(from + c, columns - c));
    }
  }
}

// Adds up the sums of the parts, each of `rows` rows and `columns` columns; `turned` exchanges the two in the result.
inline void add_parts(const float* sums, int64_t parts, int64_t rows, int64_t columns, bool turned, float* result,
                      TaskRunner& runner) {
  const auto sum_at = [&](int64_t row, int64_t column, int64_t lanes) {
    const float* const from = sums + row * columns + column;
    Vec sum = load_some(from, lanes);
    for (int64_t part = 1; part < parts; ++part) sum += load_some(from + part * rows * columns, lanes);
    return sum;
  };
  parallel(runner, ceil_div(rows, kLanes), [&](int64_t task) {
    const int64_t first = task * kLanes, height = least(kLanes, rows - first);
    for (int64_t column = 0; column < columns; column += kLanes) {
      const int64_t width = least(kLanes, columns - column);
      Vec block[kLanes] = {};
      for (int64_t r = 0; r < height; ++r) block[r] = sum_at(first + r, column, width);
      if (turned) {
        transpose(block);
        for (int64_t c = 0; c < width; ++c) store_some(result + (column + c) * rows + first, block[c], height);
      } else {
        for (int64_t r = 0; r < height; ++r) store_some(result + (first + r) * columns + column, block[r], width);
      }
    }
  });
}

// Computes the role "kernel": a product of windows and results that sums over the pixels.
inline void kernel_dense(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const Slide slide = forward_slide(p);
  const PixelBlocks blocks(slide, kGradientPixels, false);
  const int64_t all = slide.batch * slide.results(), channels = slide.result_channels, groups = slide.groups;
  // Rows of register tiles are floats of the windows and columns are channels of the results; `turned` exchanges them,
  // which takes a copy of the windows and pays where it fills more lanes.
  const Frame plain(slide, blocks, slide.source_pixel() % kConflict == 0), copy(slide, blocks, true);
  const int64_t lanes = ceil_div(channels, kLanes) * plain.run() * plain.runs();
  const int64_t turned_lanes = ceil_div(copy.run(), kLanes) * copy.runs() * channels;
  const bool turned = plain.floats() == 0 ? 4 * turned_lanes <= 3 * lanes : turned_lanes < lanes;
  const Frame& frame = turned ? copy : plain;
  const int64_t window = frame.run() * frame.runs(), size = window * groups * channels;
  const Factor windows(frame.run(), frame.runs(), !turned, turned ? 1 : groups * channels);
  const Factor results(channels, 1, turned, turned ? window : 1);
  const Factor &rows = turned ? results : windows, &columns = turned ? windows : results;

  // The parts of the pixels depend on the shape alone, so that results do not depend on the number of threads.
  int64_t parts = least(kMostParts, least(all / kPartPixels, kMostPartFloats / size));
  const int64_t part_blocks = ceil_div(blocks.count, most(parts, 1));
  parts = ceil_div(blocks.count, part_blocks);
  float* const sums = parts == 1 && !turned ? kernel : Scratch::floats(3, parts * size);

  // Tasks are parts, groups, and ranges of units of both factors.
  const int64_t threads = runner.threads(), tasks = threads > 1 ? ceil_div(4 * threads, parts * groups) : 1;
  const int64_t row_units = rows.units(), column_units = columns.units();
  const Division division(row_units * kRows, row_units * kRows, 1, column_units, column_units * kColumns, tasks);
  const int64_t row_ranges = division.blocks, column_ranges = division.ranges;

  parallel(runner, parts * groups * row_ranges * column_ranges, [&](int64_t task) {
    const int64_t column_range = task % column_ranges, row_range = task / column_ranges % row_ranges;
    const int64_t group = task / column_ranges / row_ranges % groups, part = task / column_ranges / row_ranges / groups;
    const int64_t first_row = part_begin(row_units, row_ranges, row_range);
    const int64_t last_row = part_begin(row_units, row_ranges, row_range + 1);
    const int64_t first_column = part_begin(column_units, column_ranges, column_range);
    const int64_t last_column = part_begin(column_units, column_ranges, column_range + 1);
    const int64_t first_block = part * part_blocks, last_block = least(first_block + part_blocks, blocks.count);
    float* const target = sums + part * size + group * channels * results.pitch;
    const float** const pixels = Scratch::array<const float*>(0, blocks.pixels);
    float* const packed = Scratch::floats(4, blocks.pixels * kPackedPanels * kColumns);
    float* const memory = Scratch::floats(5, frame.floats());
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t first = blocks.first(block), count = blocks.end(block, all) - first;
      frame.read(x + group * slide.source_channels, first, first + count, memory, pixels);
      // Some panels of columns are multiplied in turn by as many rows as stay in the second-level cache.
      const int64_t some_rows = most(1, kFrameFloats / (count * kRows));
      for (int64_t begin = first_column; begin < last_column; begin += kPackedPanels) {
        const int64_t end = least(begin + kPackedPanels, last_column), channel = columns.begin(begin);
        const float* const from = y + first * slide.result_pixel() + group * channels;
        if (!turned) {
          const int64_t some_columns = least(channels - channel, (end - begin) * kColumns);
          pack_results(from + channel, count, slide.result_pixel(), some_columns, packed);
        }
        for (int64_t some = first_row; some < last_row; some += some_rows) {
          for (int64_t column = begin; column < end; ++column) {
            const float* const panel = packed + (column - begin) * count * kColumns;
            const int64_t width = columns.size(column), vectors = width > kLanes ? 2 : 1;
            for (int64_t row = some; row < least(some + some_rows, last_row); ++row) {
              const int64_t height = rows.size(row), unit = turned ? column : row;
              const int64_t offset = frame.offset(unit / windows.run_units) + windows.begin(unit);
              float* to[kRows];
              for (int64_t r = 0; r < height; ++r) {
                to[r] = target + rows.place(row) + columns.place(column) + r * rows.pitch;
              }
              if (turned) {
                run_tile<GradientTile<true>>(height, vectors, pixels, offset, from + rows.begin(row),
                                             slide.result_pixel(), count, to, width, block == first_block);
              } else {
                run_tile<GradientTile<false>>(height, vectors, pixels, offset, panel, kColumns, count, to, width,
                                              block == first_block);
              }
            }
          }
        }
      }
    }
  });
  if (sums == kernel) return;
  add_parts(sums, parts, turned ? groups * channels : window, turned ? window : groups * channels, turned, kernel,
            runner);
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
