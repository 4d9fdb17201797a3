// Convolutions whose groups have few channels, depthwise ones among them: vectors hold output channels of several
// groups, and the input channels that belong to them are brought into the same lanes by a permutation.
#pragma once

#include "slide.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

// Output channels that share a vector: as many whole groups as fit, on both sides.
struct Bundle {
  int64_t groups;   // in a vector
  int64_t lanes;    // output channels of them
  int64_t sources;  // input channels of them
  int64_t count;    // bundles in all
  bool plain;       // each output channel has the one input channel of the same lane
};

inline Bundle bundle_of(int64_t groups, int64_t source_channels, int64_t result_channels) {
  Bundle bundle = {};
  bundle.plain = source_channels == 1 && result_channels == 1;
  bundle.groups = most(1, least(least(kLanes / result_channels, kLanes / source_channels), groups));
  bundle.lanes = bundle.groups * result_channels;
  bundle.sources = bundle.groups * source_channels;
  bundle.count = ceil_div(groups, bundle.groups);
  return bundle;
}

// The first channel of a vector. The last one overlaps the one before where whole vectors do not fill the channels.
struct Channels {
  int64_t source, result;
  int64_t sources, results;  // how many of them exist
};
inline Channels channels_of(const Bundle& bundle, const Slide& slide, int64_t index) {
  int64_t group = index * bundle.groups;
  group = most(0, least(group, slide.groups - bundle.groups));
  return {group * slide.source_channels, group * slide.result_channels, bundle.sources, bundle.lanes};
}

constexpr int kTile = 8;  // results along a row in a register tile

inline bool fits_narrow(int64_t source_channels, int64_t result_channels) {
  return source_channels <= kLanes && result_channels <= kLanes;
}

constexpr int64_t kLineFloats = 8192;  // floats of source lines in a block
constexpr int64_t kMostColumns = 256;  // results along a row in a block

// A block of results: some rows and columns of one plane, for one bundle of channels. Its source lines are copied
// with their padding, a vector for each pixel, so that every tap is at a fixed distance.
struct Blocks {
  const Slide& slide;
  Bundle bundle;
  int64_t columns;       // of results in a block
  int64_t rows;
  int64_t line_columns;  // source pixels under a row of a block
  int64_t lines;
  int64_t segments, bands, count;

  Blocks(const Slide& slide, const Bundle& bundle) : slide(slide), bundle(bundle) {
    const SlideAxis *ha = slide.axis + 1, *wa = slide.axis + 2;
    columns = least(wa->results, kMostColumns);
    // Results are computed by whole tiles, whose surplus reads beyond a line.
    const int64_t tiled = ceil_div(columns, kTile) * kTile;
    line_columns = (tiled - 1) * wa->source_stride + most(0, wa->taps - 1) * wa->source_step + 1;
    const int64_t reach = most(0, ha->taps - 1) * ha->source_step + 1;
    const int64_t room = most(reach, kLineFloats / (line_columns * kLanes));
    rows = least(ha->results, (room - reach) / ha->source_stride + 1);
    bands = ceil_div(ha->results, rows);
    rows = ceil_div(ha->results, bands);
    lines = (rows - 1) * ha->source_stride + reach;
    segments = ceil_div(wa->results, columns);
    count = slide.batch * slide.axis[0].results * bands * segments;
  }

  int64_t floats() const { return lines * line_columns * kLanes; }
};

struct Block {
  int64_t image, d, first_row, first_column, rows, columns;

  Block(const Blocks& blocks, int64_t number) {
    const Slide& slide = blocks.slide;
    first_column = number % blocks.segments * blocks.columns;
    number /= blocks.segments;
    first_row = number % blocks.bands * blocks.rows;
    number /= blocks.bands;
    d = number % slide.axis[0].results;
    image = number / slide.axis[0].results;
    rows = least(blocks.rows, slide.axis[1].results - first_row);
    columns = least(blocks.columns, slide.axis[2].results - first_column);
  }
};

// Copies the source lines under a block for one tap of the depth; `channel` is the bundle's first one.
inline void copy_lines(const Blocks& blocks, const Block& block, int64_t td, const float* source, int64_t channel,
                       float* to) {
  const Slide& slide = blocks.slide;
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const int64_t pixel = slide.source_pixel(), channels = blocks.bundle.sources;
  const int64_t sd = block.d * da->source_stride + da->source_first + td * da->source_step;
  const int64_t left = block.first_column * wa->source_stride + wa->source_first;
  const int64_t begin = least(blocks.line_columns, most(0, -left));
  const int64_t end = most(begin, least(blocks.line_columns, wa->source_size - left));
  const int64_t used = (block.rows - 1) * ha->source_stride + most(0, ha->taps - 1) * ha->source_step + 1;
  for (int64_t l = 0; l < used; ++l, to += blocks.line_columns * kLanes) {
    const int64_t sh = block.first_row * ha->source_stride + ha->source_first + l;
    if (sd < 0 || sd >= da->source_size || sh < 0 || sh >= ha->source_size) {
      clear(to, blocks.line_columns * kLanes);
      continue;
    }
    clear(to, begin * kLanes);
    clear(to + end * kLanes, (blocks.line_columns - end) * kLanes);
    const int64_t line = ((block.image * da->source_size + sd) * ha->source_size + sh) * wa->source_size;
    const float* from = source + (line + left + begin) * pixel + channel;
    if (channels == kLanes) {
      for (int64_t c = begin; c < end; ++c, from += pixel) {
        // The next bundle reads the vector beside this one.
        __builtin_prefetch(from + kLanes);
        store(to + c * kLanes, load(from));
      }
    } else {
      for (int64_t c = begin; c < end; ++c, from += pixel) store(to + c * kLanes, load_some(from, channels));
    }
  }
}

// The kernel by bundle, tap and input channel, a vector each; lanes without an output channel are zero.
inline void pack_narrow(const Slide& slide, const Bundle& bundle, const float* kernel, int64_t index, float* to) {
  const int64_t sources = slide.source_channels, results = slide.result_channels;
  const int64_t taps = slide.window[0] * slide.window[1] * slide.window[2];
  const int64_t first_group = most(0, least(index * bundle.groups, slide.groups - bundle.groups));
  clear(to, taps * sources * kLanes);
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t i = 0; i < sources; ++i, to += kLanes) {
      for (int64_t lane = 0; lane < bundle.lanes; ++lane) {
        const int64_t group = first_group + lane / results, o = lane % results;
        to[lane] = slide.transposed ? kernel[(tap * results + o) * slide.source_pixel() + group * sources + i]
                                    : kernel[(tap * sources + i) * slide.result_pixel() + group * results + o];
      }
    }
  }
}

inline void fill_lanes(const Bundle& bundle, int64_t sources, int64_t results, IntVec* lanes) {
  for (int64_t i = 0; i < sources; ++i) {
    int32_t index[kLanes] = {};
    for (int64_t lane = 0; lane < bundle.lanes; ++lane) {
      index[lane] = static_cast<int32_t>(lane / results * sources + i);
    }
    lanes[i] = *reinterpret_cast<const UnalignedIntVec*>(index);
  }
}

// sums[q] += sum of kT taps, `tap_step` pixels apart, for kTile results `step` pixels apart; fixed steps let pixels
// that several results read stay in registers.
template <int kT, int kFixedStep, bool kPlain>
JAXCNN_INLINE void add_row(const float* line, int64_t step, int64_t tap_step, const float* weights, int64_t pitch,
                           IntVec lane, Vec (&sums)[kTile]) {
  if (kFixedStep) {
    step = kFixedStep;
    tap_step = 1;
  }
  Vec weight[kT];
#pragma GCC unroll 8
  for (int t = 0; t < kT; ++t) weight[t] = load(weights + t * pitch);
  if (kFixedStep) {
    constexpr int kPixels = (kTile - 1) * kFixedStep + kT;
#pragma GCC unroll 32
    for (int i = 0; i < kPixels; ++i) {
      Vec pixel = load(line + i * kLanes);
      if (!kPlain) pixel = permute(pixel, lane);
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        if ((i - t) % (kFixedStep ? kFixedStep : 1) == 0 && i >= t && (i - t) / (kFixedStep ? kFixedStep : 1) < kTile) {
          sums[(i - t) / (kFixedStep ? kFixedStep : 1)] += pixel * weight[t];
        }
      }
    }
  } else {
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 8
      for (int q = 0; q < kTile; ++q) {
        const Vec pixel = load(line + (q * step + t * tap_step) * kLanes);
        sums[q] += (kPlain ? pixel : permute(pixel, lane)) * weight[t];
      }
    }
  }
}

// A row of kTile results: all taps and input channels of a bundle, added to what is in `sums`.
struct TileInput {
  const float* lines;    // source pixel of the first tap
  int64_t line_floats;   // from one row of taps to the next
  int64_t step, tap_step;
  int64_t height, width; // taps
  int64_t sources;
  const float* weights;  // of the first tap
  int64_t row_pitch, pitch, source_pitch;
  const IntVec* lanes;
};

template <int kFixedStep, bool kPlain>
__attribute__((noinline)) void add_tile(const TileInput& in, float* partial, bool first, float* const* results,
                                        int64_t count, int64_t channels) {
  Vec sums[kTile];
#pragma GCC unroll 8
  for (int q = 0; q < kTile; ++q) sums[q] = first ? Vec{} : load(partial + q * kLanes);
  for (int64_t th = 0; th < in.height; ++th) {
    for (int64_t i = 0; i < in.sources; ++i) {
      const float* line = in.lines + th * in.line_floats;
      const float* weights = in.weights + th * in.row_pitch + i * in.source_pitch;
      const IntVec lane = kPlain ? IntVec{} : in.lanes[i];
      int64_t taps = in.width;
      for (; taps > 7; taps -= 5, line += 5 * in.tap_step * kLanes, weights += 5 * in.pitch) {
        add_row<5, kFixedStep, kPlain>(line, in.step, in.tap_step, weights, in.pitch, lane, sums);
      }
      switch (taps) {
#define JAXCNN_TAPS(n)                                                                               \
  case n:                                                                                            \
    add_row<n, kFixedStep, kPlain>(line, in.step, in.tap_step, weights, in.pitch, lane, sums);       \
    break;
        JAXCNN_TAPS(1)
        JAXCNN_TAPS(2)
        JAXCNN_TAPS(3)
        JAXCNN_TAPS(4)
        JAXCNN_TAPS(5)
        JAXCNN_TAPS(6)
        JAXCNN_TAPS(7)
#undef JAXCNN_TAPS
      }
    }
  }
  if (partial) {
    for (int q = 0; q < kTile; ++q) store(partial + q * kLanes, sums[q]);
  }
  if (!results) return;
  if (channels == kLanes && count == kTile) {
#pragma GCC unroll 8
    for (int q = 0; q < kTile; ++q) store(results[q], sums[q]);
  } else {
    for (int64_t q = 0; q < count; ++q) store_some(results[q], sums[q], channels);
  }
}

using TileAdder = void (*)(const TileInput&, float*, bool, float* const*, int64_t, int64_t);

inline TileAdder tile_adder(const SlideAxis& width, bool plain) {
  const int64_t fixed = width.source_step == 1 || width.taps <= 1 ? width.source_stride : 0;
  if (plain) return fixed == 1 ? add_tile<1, true> : fixed == 2 ? add_tile<2, true> : add_tile<0, true>;
  return fixed == 1 ? add_tile<1, false> : fixed == 2 ? add_tile<2, false> : add_tile<0, false>;
}

inline void slide_narrow(const Slide& slide, const float* source, const float* kernel, float* result,
                         const Epilogue& epilogue, TaskRunner& runner) {
  const int64_t sources = slide.source_channels, results = slide.result_channels;
  const Bundle bundle = bundle_of(slide.groups, sources, results);
  const bool direct = bundle.plain && slide.groups >= kLanes;  // the kernel is read as it lies
  const int64_t window = slide.window[0] * slide.window[1] * slide.window[2];
  IntVec lanes[kLanes];
  fill_lanes(bundle, sources, results, lanes);
  float* packed = nullptr;
  if (!direct) {
    packed = Scratch::floats(3, bundle.count * window * sources * kLanes);
    for (int64_t index = 0; index < bundle.count; ++index) {
      pack_narrow(slide, bundle, kernel, index, packed + index * window * sources * kLanes);
    }
  }
  const bool plain_epilogue = is_empty(epilogue);
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const Blocks blocks(slide, bundle);
  const TileAdder adder = tile_adder(*wa, bundle.plain);
  const int64_t wanted = runner.threads() > 1 ? 4 * runner.threads() : 1;
  // The last bundle, where it overlaps the one before, is computed by the same task: both write the same results.
  const bool overlap = bundle.count > 1 && slide.groups % bundle.groups != 0;
  const int64_t units = overlap ? bundle.count - 1 : bundle.count;
  int64_t ranges = 1;
  while (blocks.count * ranges < wanted && ranges < units) ++ranges;
  const int64_t range_units = ceil_div(units, ranges);

  parallel(runner, blocks.count * ranges, [&](int64_t task) {
    const Block block(blocks, task / ranges);
    float* const lines = Scratch::floats(0, blocks.floats());
    const int64_t tiles = ceil_div(block.columns, kTile);
    // Sums over the taps of the depth that came before.
    float* const partial = da->taps > 1 ? Scratch::floats(1, block.rows * tiles * kTile * kLanes) : nullptr;
    const int64_t first_unit = least(task % ranges * range_units, units);
    const int64_t last_unit = least(first_unit + range_units, units);
    const int64_t last_bundle = first_unit < last_unit && last_unit == units ? bundle.count : last_unit;
    for (int64_t index = first_unit; index < last_bundle; ++index) {
      const Channels channels = channels_of(bundle, slide, index);
      for (int64_t td = 0; td == 0 || td < da->taps; ++td) {
        copy_lines(blocks, block, td, source, channels.source, lines);
        const int64_t tap = slide.kernel_tap(td, 0, 0), tap_floats = direct ? slide.groups : sources * kLanes;
        const float* weights = direct ? kernel + channels.source : packed + index * window * sources * kLanes;
        TileInput in = {nullptr,
                        ha->source_step * blocks.line_columns * kLanes,
                        wa->source_stride,
                        wa->source_step,
                        da->taps ? ha->taps : 0,
                        wa->taps,
                        sources,
                        weights + tap * tap_floats,
                        ha->kernel_step * slide.window[2] * tap_floats,
                        wa->kernel_step * tap_floats,
                        kLanes,
                        lanes};
        const bool last = td + 1 >= da->taps;
        for (int64_t r = 0; r < block.rows; ++r) {
          const int64_t rd = da->result_first + block.d * da->result_step;
          const int64_t rh = ha->result_first + (block.first_row + r) * ha->result_step;
          const int64_t line = ((block.image * da->result_size + rd) * ha->result_size + rh) * wa->result_size;
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t q = tile * kTile, count = least(kTile, block.columns - q);
            in.lines = lines + (r * ha->source_stride * blocks.line_columns + q * wa->source_stride) * kLanes;
            float* to[kTile];
            const int64_t rw = wa->result_first + (block.first_column + q) * wa->result_step;
            float* place = result + (line + rw) * slide.result_pixel() + channels.result;
            for (int i = 0; i < kTile; ++i, place += wa->result_step * slide.result_pixel()) to[i] = place;
            adder(in, partial ? partial + (r * tiles + tile) * kTile * kLanes : nullptr, td == 0, last ? to : nullptr,
                  count, channels.results);
            if (last && !plain_epilogue) finish(to, count, channels.results, channels.result, result, epilogue);
          }
        }
      }
    }
  });
}

// Lines of source and result pixels of one bundle, a vector for each pixel, zeros for padding.
struct LineBlock {
  const float* source;     // [row][column][kLanes]
  const float* result;     // [row][column][kLanes]
  int64_t source_columns;  // of a line
  int64_t rows, columns;   // of the results
  int64_t row_step, column_step;  // source lines and pixels from one result to the next
};

// sums[t] += sum over the block of source * result for kT taps along the width, `tap_step` pixels apart.
template <int kT, bool kPlain>
__attribute__((noinline)) void add_taps(const LineBlock& block, int64_t line, int64_t column, int64_t tap_step,
                                        IntVec lane, float* to, int64_t pitch) {
  constexpr int kU = kT > 6 ? 1 : kT > 4 ? 2 : 12 / (kT < 2 ? 2 : kT);
  Vec sums[kU][kT];
#pragma GCC unroll 12
  for (int u = 0; u < kU; ++u)
#pragma GCC unroll 12
    for (int t = 0; t < kT; ++t) sums[u][t] = Vec{};
  const int64_t tap = tap_step * kLanes, step = block.column_step * kLanes;
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* from = block.source + ((r * block.row_step + line) * block.source_columns + column) * kLanes;
    const float* with = block.result + r * block.columns * kLanes;
    int64_t q = 0;
    for (; q + kU <= block.columns; q += kU, from += kU * step, with += kU * kLanes) {
#pragma GCC unroll 12
      for (int u = 0; u < kU; ++u) {
        const Vec value = load(with + u * kLanes);
#pragma GCC unroll 12
        for (int t = 0; t < kT; ++t) {
          const Vec pixel = load(from + u * step + t * tap);
          sums[u][t] += (kPlain ? pixel : permute(pixel, lane)) * value;
        }
      }
    }
    for (; q < block.columns; ++q, from += step, with += kLanes) {
      const Vec value = load(with);
#pragma GCC unroll 12
      for (int t = 0; t < kT; ++t) {
        const Vec pixel = load(from + t * tap);
        sums[0][t] += (kPlain ? pixel : permute(pixel, lane)) * value;
      }
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < kT; ++t) {
    Vec sum = sums[0][t];
#pragma GCC unroll 12
    for (int u = 1; u < kU; ++u) sum += sums[u][t];
    store(to + t * pitch, load(to + t * pitch) + sum);
  }
}

constexpr int kMostTaps = 8;

template <bool kPlain, int kT = kMostTaps>
void add_taps_of(int64_t count, const LineBlock& block, int64_t line, int64_t column, int64_t tap_step, IntVec lane,
                 float* to, int64_t pitch) {
  if constexpr (kT == 1) {
    add_taps<1, kPlain>(block, line, column, tap_step, lane, to, pitch);
  } else {
    if (count == kT) {
      add_taps<kT, kPlain>(block, line, column, tap_step, lane, to, pitch);
    } else {
      add_taps_of<kPlain, kT - 1>(count, block, line, column, tap_step, lane, to, pitch);
    }
  }
}

constexpr int64_t kNarrowPartPixels = 1024;

// The role "kernel" of narrow groups.
inline void kernel_narrow(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const Slide slide = forward_slide(p);
  const int64_t sources = slide.source_channels, results = slide.result_channels, taps = slide.taps();
  const Bundle bundle = bundle_of(slide.groups, sources, results);
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  IntVec lanes[kLanes];
  fill_lanes(bundle, sources, results, lanes);

  const Blocks blocks(slide, bundle);
  // Parts of the blocks depend on the shape alone, so that results do not depend on the number of threads.
  constexpr int64_t kTasks = 16, kMostNarrowParts = 8;
  const int64_t pixels = slide.batch * slide.results();
  const int64_t parts =
      most(1, least(least(kMostNarrowParts, ceil_div(kTasks, bundle.count)), least(blocks.count, pixels / kNarrowPartPixels)));
  const int64_t part_blocks = ceil_div(blocks.count, parts);
  const int64_t size = taps * sources * kLanes;
  float* const sums = Scratch::floats(3, parts * bundle.count * size);

  parallel(runner, parts * bundle.count, [&](int64_t task) {
    const int64_t part = task / bundle.count, index = task % bundle.count;
    const Channels channels = channels_of(bundle, slide, index);
    float* const own = sums + task * size;
    clear(own, size);
    float* const source_lines = Scratch::floats(0, blocks.floats());
    float* const result_lines = Scratch::floats(1, blocks.rows * blocks.columns * kLanes);
    for (int64_t number = part * part_blocks; number < least((part + 1) * part_blocks, blocks.count); ++number) {
      const Block at(blocks, number);
      const LineBlock block = {source_lines, result_lines,      blocks.line_columns, at.rows,
                               at.columns,   ha->source_stride, wa->source_stride};
      for (int64_t r = 0; r < at.rows; ++r) {
        const int64_t line = (at.image * da->results + at.d) * ha->results + at.first_row + r;
        const float* from = y + (line * wa->results + at.first_column) * slide.result_pixel() + channels.result;
        float* to = result_lines + r * at.columns * kLanes;
        for (int64_t q = 0; q < at.columns; ++q, from += slide.result_pixel(), to += kLanes) {
          store(to, load_some(from, channels.results));
        }
      }
      for (int64_t td = 0; td < da->taps; ++td) {
        copy_lines(blocks, at, td, x, channels.source, source_lines);
        for (int64_t th = 0; th < ha->taps; ++th) {
          for (int64_t tw = 0; tw < wa->taps; tw += kMostTaps) {
            const int64_t count = least(kMostTaps, wa->taps - tw);
            for (int64_t i = 0; i < sources; ++i) {
              float* const to = own + (((td * ha->taps + th) * wa->taps + tw) * sources + i) * kLanes;
              const int64_t line = th * ha->source_step, column = tw * wa->source_step;
              if (bundle.plain) {
                add_taps_of<true>(count, block, line, column, wa->source_step, lanes[i], to, sources * kLanes);
              } else {
                add_taps_of<false>(count, block, line, column, wa->source_step, lanes[i], to, sources * kLanes);
              }
            }
          }
        }
      }
    }
  });
  for (int64_t index = 0; index < bundle.count; ++index) {
    const Channels channels = channels_of(bundle, slide, index);
    for (int64_t k = 0; k < taps * sources; ++k) {
      Vec sum = load(sums + index * size + k * kLanes);
      for (int64_t part = 1; part < parts; ++part) {
        sum += load(sums + (part * bundle.count + index) * size + k * kLanes);
      }
      store_some(kernel + k * slide.result_pixel() + channels.result, sum, channels.results);
    }
  }
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
