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

inline bool fits_narrow(int64_t source_channels, int64_t result_channels) {
  return source_channels <= kLanes && result_channels <= kLanes;
}

// Adds a row of taps to kQ results side by side, whose source pixels are `step` floats apart.
template <int kQ, bool kPlain>
JAXCNN_INLINE void slide_row(const float* row, int64_t step, int64_t tap_step, const float* taps, int64_t tap_pitch,
                             int64_t tap_count, int64_t sources, const IntVec* lanes, Vec (&sums)[kQ]) {
  for (int64_t t = 0; t < tap_count; ++t, row += tap_step, taps += tap_pitch) {
    if constexpr (kPlain) {
      const Vec weight = load(taps);
#pragma GCC unroll 16
      for (int q = 0; q < kQ; ++q) sums[q] += load(row + q * step) * weight;
    } else {
      for (int64_t i = 0; i < sources; ++i) {
        const Vec weight = load(taps + i * kLanes);
        const IntVec lane = lanes[i];
#pragma GCC unroll 16
        for (int q = 0; q < kQ; ++q) sums[q] += permute(load(row + q * step), lane) * weight;
      }
    }
  }
}

// Like `slide_row`, with a pointer for each source pixel, which is that of zeros where it is padding.
template <int kQ, bool kPlain>
JAXCNN_INLINE void slide_border(const float* const* pixels, int64_t channel, int64_t stride, int64_t tap_stride,
                                const float* taps, int64_t tap_pitch, int64_t tap_count, int64_t sources,
                                const IntVec* lanes, Vec (&sums)[kQ]) {
  for (int64_t t = 0; t < tap_count; ++t, pixels += tap_stride, taps += tap_pitch) {
    if constexpr (kPlain) {
      const Vec weight = load(taps);
#pragma GCC unroll 16
      for (int q = 0; q < kQ; ++q) sums[q] += load(pixels[q * stride] + channel) * weight;
    } else {
      for (int64_t i = 0; i < sources; ++i) {
        const Vec weight = load(taps + i * kLanes);
        const IntVec lane = lanes[i];
#pragma GCC unroll 16
        for (int q = 0; q < kQ; ++q) sums[q] += permute(load(pixels[q * stride] + channel), lane) * weight;
      }
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

constexpr int kMostQ = kLanes == 16 ? 14 : kLanes == 8 ? 8 : 6;

struct NarrowRow {
  const Slide* slide;
  Bundle bundle;
  const float* source;
  float* result;
  const float* zeros;
  const float* taps;     // packed, or where `direct` the kernel itself
  bool direct;
  int64_t tap_pitch;     // floats between taps along the width
  int64_t bundle_pitch;  // floats between bundles
  int64_t kernel_tap;    // floats between taps of the whole kernel
  const IntVec* lanes;
  int64_t image, d, h;
};

// Whether a whole vector loaded from column `w` of a row under the window may go beyond the source.
inline bool reaches_end(const NarrowRow& row, int64_t w) {
  const Slide& slide = *row.slide;
  const int64_t at[2] = {row.d, row.h};
  int64_t line = row.image;
  for (int a = 0; a < 2; ++a) {
    const SlideAxis& axis = slide.axis[a];
    const int64_t last = at[a] * axis.source_stride + axis.source_first + most(0, (axis.taps - 1) * axis.source_step);
    line = line * axis.source_size + most(0, least(last, axis.source_size - 1));
  }
  const int64_t lines = slide.batch * slide.axis[0].source_size * slide.axis[1].source_size;
  const int64_t width = slide.axis[2].source_size, pixel = slide.source_pixel();
  return (line * width + w + 1) * pixel + kLanes > lines * width * pixel;
}

// Results [q, q + kQ) of one row, for all channels.
template <int kQ, bool kPlain>
__attribute__((noinline)) void narrow_tile(const NarrowRow& row, int64_t q) {
  const Slide& slide = *row.slide;
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const int64_t pixel = slide.source_pixel();
  const int64_t first = q * wa->source_stride + wa->source_first;
  const int64_t last_tap = (wa->taps - 1) * wa->source_step;
  const int64_t last = first + (kQ - 1) * wa->source_stride;
  const int64_t low = least(first, first + last_tap), high = most(last, last + last_tap);
  // A load of a whole vector reads past the channels of a bundle: near the source's end that is done like a border.
  const bool whole = kPlain && slide.groups >= kLanes;
  const bool inside = low >= 0 && high < wa->source_size && (whole || !reaches_end(row, high));
  const float** const pixels = inside ? nullptr
                                      : reinterpret_cast<const float**>(
                                            Scratch::floats(4, 2 * (kQ * wa->taps) + 2));
  float* const copies = inside || whole ? nullptr : Scratch::floats(5, kQ * wa->taps * kLanes);
  const int64_t rd = da->result_first + row.d * da->result_step, rh = ha->result_first + row.h * ha->result_step;
  const int64_t rw = wa->result_first + q * wa->result_step;
  float* const result =
      row.result + (((row.image * da->result_size + rd) * ha->result_size + rh) * wa->result_size + rw) *
                       slide.result_pixel();
  const int64_t result_step = wa->result_step * slide.result_pixel();

  for (int64_t index = 0; index < row.bundle.count; ++index) {
    const Channels channels = channels_of(row.bundle, slide, index);
    Vec sums[kQ];
#pragma GCC unroll 16
    for (int i = 0; i < kQ; ++i) sums[i] = Vec{};
    for (int64_t td = 0; td < da->taps; ++td) {
      const int64_t sd = row.d * da->source_stride + da->source_first + td * da->source_step;
      for (int64_t th = 0; th < ha->taps; ++th) {
        const int64_t sh = row.h * ha->source_stride + ha->source_first + th * ha->source_step;
        const bool row_inside = sd >= 0 && sd < da->source_size && sh >= 0 && sh < ha->source_size;
        const float* const taps = row.taps + (row.direct ? channels.source : index * row.bundle_pitch) +
                                  slide.kernel_tap(td, th, 0) * row.kernel_tap;
        const int64_t line = ((row.image * da->source_size + sd) * ha->source_size + sh) * wa->source_size;
        if (inside) {
          const float* from = row_inside ? row.source + (line + first) * pixel + channels.source : row.zeros;
          slide_row<kQ, kPlain>(from, row_inside ? wa->source_stride * pixel : 0,
                                row_inside ? wa->source_step * pixel : 0, taps, row.tap_pitch, wa->taps,
                                slide.source_channels, row.lanes, sums);
          continue;
        }
        for (int64_t t = 0; t < wa->taps; ++t) {
          for (int i = 0; i < kQ; ++i) {
            const int64_t sw = first + i * wa->source_stride + t * wa->source_step;
            const bool pixel_inside = row_inside && sw >= 0 && sw < wa->source_size;
            const float* from = pixel_inside ? row.source + (line + sw) * pixel + channels.source : row.zeros;
            if (!whole && pixel_inside) {
              float* const to = copies + (t * kQ + i) * kLanes;
              copy(to, from, channels.sources);
              from = to;
            }
            pixels[t * kQ + i] = from;
          }
        }
        slide_border<kQ, kPlain>(pixels, 0, 1, kQ, taps, row.tap_pitch, wa->taps, slide.source_channels, row.lanes,
                                 sums);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kQ; ++i) store_some(result + i * result_step + channels.result, sums[i], channels.results);
  }
}

template <bool kPlain, int kQ = kMostQ>
void narrow_columns(const NarrowRow& row, int64_t q, int64_t count) {
  if constexpr (kQ == 1) {
    narrow_tile<1, kPlain>(row, q);
  } else {
    if (count == kQ) {
      narrow_tile<kQ, kPlain>(row, q);
    } else {
      narrow_columns<kPlain, kQ - 1>(row, q, count);
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

inline void slide_narrow(const Slide& slide, const float* source, const float* kernel, float* result,
                         const Epilogue& epilogue, TaskRunner& runner) {
  const int64_t sources = slide.source_channels, results = slide.result_channels;
  const Bundle bundle = bundle_of(slide.groups, sources, results);
  const bool direct = bundle.plain && slide.groups >= kLanes;
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
  const int64_t rows = slide.batch * da->results * ha->results;
  constexpr int64_t kTaskProducts = 1 << 15;
  const int64_t row_products = most(1, wa->results * slide.taps() * sources * bundle.count);
  int64_t task_rows = most(1, least(kTaskProducts / row_products, ceil_div(rows, 4 * runner.threads())));
  static const float zeros[kLanes] = {};

  parallel(runner, ceil_div(rows, task_rows), [&](int64_t task) {
    const int64_t first = task * task_rows, last = least(first + task_rows, rows);
    for (int64_t index = first; index < last; ++index) {
      const int64_t kernel_tap = direct ? slide.groups : sources * kLanes;
      NarrowRow row = {&slide,
                       bundle,
                       source,
                       result,
                       zeros,
                       direct ? kernel : packed,
                       direct,
                       wa->kernel_step * kernel_tap,
                       window * sources * kLanes,
                       kernel_tap,
                       lanes,
                       0,
                       0,
                       0};
      row.h = index % ha->results;
      row.d = index / ha->results % da->results;
      row.image = index / ha->results / da->results;
      // Tiles of even widths: a last one of one pixel would cost nearly as much as a whole one.
      const int64_t tiles = ceil_div(wa->results, kMostQ);
      for (int64_t tile = 0, q = 0; tile < tiles; ++tile) {
        const int64_t count = ceil_div(wa->results - q, tiles - tile);
        if (bundle.plain) {
          narrow_columns<true>(row, q, count);
        } else {
          narrow_columns<false>(row, q, count);
        }
        q += count;
      }
      if (!plain_epilogue) {
        const int64_t rd = da->result_first + row.d * da->result_step, rh = ha->result_first + row.h * ha->result_step;
        for (int64_t q = 0; q < wa->results; ++q) {
          const int64_t rw = wa->result_first + q * wa->result_step;
          const int64_t at = (((row.image * da->result_size + rd) * ha->result_size + rh) * wa->result_size + rw) *
                             slide.result_pixel();
          finish(result + at, epilogue.residual ? epilogue.residual + at : nullptr, 0, slide.result_pixel(), epilogue);
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

constexpr int64_t kLineFloats = 12288;   // floats of source lines in a block
constexpr int64_t kMostColumns = 256;    // results along a row in a block
constexpr int64_t kNarrowPartPixels = 1024;

// The role "kernel" of narrow groups.
inline void kernel_narrow(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const Slide slide = forward_slide(p);
  const int64_t sources = slide.source_channels, results = slide.result_channels, taps = slide.taps();
  const Bundle bundle = bundle_of(slide.groups, sources, results);
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  IntVec lanes[kLanes];
  fill_lanes(bundle, sources, results, lanes);

  const int64_t columns = least(wa->results, kMostColumns);
  const int64_t line_columns = (columns - 1) * wa->source_stride + (wa->taps - 1) * wa->source_step + 1;
  const int64_t reach = (ha->taps - 1) * ha->source_step + 1;
  const int64_t lines = most(reach, kLineFloats / (line_columns * kLanes));
  const int64_t block_rows = least(ha->results, (lines - reach) / ha->source_stride + 1);
  const int64_t segments = ceil_div(wa->results, columns), bands = ceil_div(ha->results, block_rows);
  const int64_t blocks = slide.batch * da->results * bands * segments;
  // Parts of the blocks depend on the shape alone, so that results do not depend on the number of threads.
  constexpr int64_t kTasks = 16, kMostNarrowParts = 8;
  const int64_t pixels = slide.batch * slide.results();
  const int64_t parts =
      most(1, least(least(kMostNarrowParts, ceil_div(kTasks, bundle.count)), least(blocks, pixels / kNarrowPartPixels)));
  const int64_t part_blocks = ceil_div(blocks, parts);
  const int64_t size = taps * sources * kLanes;
  float* const sums = Scratch::floats(3, parts * bundle.count * size);

  parallel(runner, parts * bundle.count, [&](int64_t task) {
    const int64_t part = task / bundle.count, index = task % bundle.count;
    const Channels channels = channels_of(bundle, slide, index);
    float* const own = sums + task * size;
    clear(own, size);
    float* const source_lines = Scratch::floats(0, ((block_rows - 1) * ha->source_stride + reach) * line_columns * kLanes);
    float* const result_lines = Scratch::floats(1, block_rows * columns * kLanes);
    for (int64_t number = part * part_blocks; number < least((part + 1) * part_blocks, blocks); ++number) {
      const int64_t segment = number % segments, band = number / segments % bands;
      const int64_t d = number / segments / bands % da->results, image = number / segments / bands / da->results;
      const int64_t first_row = band * block_rows, first_column = segment * columns;
      LineBlock block = {source_lines,
                         result_lines,
                         line_columns,
                         least(block_rows, ha->results - first_row),
                         least(columns, wa->results - first_column),
                         ha->source_stride,
                         wa->source_stride};
      for (int64_t r = 0; r < block.rows; ++r) {
        const float* from = y + (((image * da->results + d) * ha->results + first_row + r) * wa->results +
                                 first_column) * slide.result_pixel() + channels.result;
        float* to = result_lines + r * block.columns * kLanes;
        for (int64_t q = 0; q < block.columns; ++q, from += slide.result_pixel(), to += kLanes) {
          store(to, load_some(from, channels.results));
        }
      }
      const int64_t used_lines = (block.rows - 1) * ha->source_stride + reach;
      const int64_t left = first_column * wa->source_stride + wa->source_first;
      for (int64_t td = 0; td < da->taps; ++td) {
        const int64_t sd = d * da->source_stride + da->source_first + td * da->source_step;
        for (int64_t l = 0; l < used_lines; ++l) {
          const int64_t sh = first_row * ha->source_stride + ha->source_first + l;
          float* const to = source_lines + l * line_columns * kLanes;
          if (sd < 0 || sd >= da->source_size || sh < 0 || sh >= ha->source_size) {
            clear(to, line_columns * kLanes);
            continue;
          }
          const int64_t begin = least(line_columns, most(0, -left));
          const int64_t end = most(begin, least(line_columns, wa->source_size - left));
          clear(to, begin * kLanes);
          clear(to + end * kLanes, (line_columns - end) * kLanes);
          const float* from =
              x + (((image * da->source_size + sd) * ha->source_size + sh) * wa->source_size + left + begin) *
                      slide.source_pixel() + channels.source;
          for (int64_t c = begin; c < end; ++c, from += slide.source_pixel()) {
            store(to + c * kLanes, load_some(from, channels.sources));
          }
        }
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
