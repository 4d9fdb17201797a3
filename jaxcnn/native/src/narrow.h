// Convolutions whose groups have few channels, such as depthwise ones: a vector holds the result channels of several
// groups. Source pixels are copied line by line, with their padding, as one vector for each source channel of a group.
// Each lane of this vector holds the channel that the result in the same lane reads.
#pragma once

#include "frame.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

// Groups that share a vector: as many as fit in a vector of source channels and in one of result channels.
struct Bundle {
  int64_t groups;   // in a vector
  int64_t lanes;    // result channels of them
  int64_t sources;  // source channels of them
  int64_t count;    // bundles in all
  bool plain;       // each result channel reads the source channel of the same lane alone
  // lane[i]: the lane of source channel number i of each result's group.
  IntVec lane[kLanes];
  IntVec result;  // the number of each result channel in its group; -1 where there is none

  explicit Bundle(const Slide& slide) {
    const int64_t wide = most(slide.source_channels, slide.result_channels);
    plain = wide == 1;
    groups = least(kLanes / wide, slide.groups);
    lanes = groups * slide.result_channels;
    sources = groups * slide.source_channels;
    count = ceil_div(slide.groups, groups);
    for (int64_t n = 0; n < kLanes; ++n) {
      const int64_t group = n / slide.result_channels;
      result[n] = n < lanes ? static_cast<int32_t>(n % slide.result_channels) : -1;
      for (int64_t i = 0; i < slide.source_channels; ++i) {
        lane[i][n] = n < lanes ? static_cast<int32_t>(group * slide.source_channels + i) : 0;
      }
    }
  }

  // Returns the first group of a bundle. The last bundle overlaps the one before if `groups` does not divide them.
  int64_t first_group(const Slide& slide, int64_t index) const {
    return least(index * groups, slide.groups - groups);
  }
};

// Returns whether the channels of a group fit in a vector.
inline bool fits_narrow(int64_t source_channels, int64_t result_channels) {
  return source_channels <= kLanes && result_channels <= kLanes;
}

// The source pixels that a run of results along a row reads: `count` columns from `first` on, of which those with
// numbers [begin, end) lie inside of the source.
struct SourceColumns {
  int64_t first, count, begin, end;

  SourceColumns(const SlideAxis& axis, int64_t first_result, int64_t count)
      : first(first_result * axis.source_stride + axis.source_first),
        count(count),
        begin(least(count, most(0, -first))),
        end(most(begin, least(count, axis.source_size - first))) {}
};

// Copies the columns of a source line that lie inside of the source, or zeros if the line lies outside. Each source
// channel of a group has a plane of its own, `plane` floats apart. `source` is the bundle's first channel in the first
// pixel of the array.
inline void copy_line(const Slide& slide, const Bundle& bundle, const float* source, int64_t image, int64_t sd,
                      int64_t sh, const SourceColumns& columns, float* to, int64_t plane) {
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  to += columns.begin * kLanes;
  const int64_t count = columns.end - columns.begin, pixel = slide.source_pixel();
  if (sd < 0 || sd >= da->source_size || sh < 0 || sh >= ha->source_size) {
    for (int64_t i = 0; i < slide.source_channels; ++i) clear(to + i * plane, count * kLanes);
    return;
  }
  const int64_t line = ((image * da->source_size + sd) * ha->source_size + sh) * wa->source_size;
  const float* from = source + (line + columns.first + columns.begin) * pixel;
  // The next call reads the next line, or the next bundle's channels if there is a single line.
  const int64_t ahead = ha->source_size > 1 ? wa->source_size * pixel : kLanes;
  for (int64_t c = 0; c < count; ++c, from += pixel, to += kLanes) {
    __builtin_prefetch(from + ahead);
    const Vec value = load_some(from, bundle.sources);
    if (bundle.plain) {
      store(to, value);
    } else {
      for (int64_t i = 0; i < slide.source_channels; ++i) store(to + i * plane, permute(value, bundle.lane[i]));
    }
  }
}

// Calls `body` with the tap and the source channel of each vector of a bundle's kernel, in the order in which they are
// packed: by depth, source channel, height and width.
template <typename Body>
JAXCNN_INLINE void for_each_vector(const Slide& slide, const Body& body) {
  for (int64_t d = 0; d < slide.axis[0].taps; ++d) {
    for (int64_t i = 0; i < slide.source_channels; ++i) {
      for (int64_t h = 0; h < slide.axis[1].taps; ++h) {
        for (int64_t w = 0; w < slide.axis[2].taps; ++w) body(slide.kernel_tap(d, h, w), i);
      }
    }
  }
}

// Copies the kernel of the bundle whose first group is `group`; lanes without a result are zero.
inline void pack_narrow(const Slide& slide, const Bundle& bundle, const float* kernel, int64_t group, float* to) {
  const int64_t sources = slide.source_channels, results = slide.result_channels;
  for_each_vector(slide, [&](int64_t tap, int64_t i) {
    if (!slide.transposed || bundle.plain) {
      store(to, load_some(kernel + (tap * sources + i) * slide.result_pixel() + group * results, bundle.lanes));
    } else {
      const float* from = kernel + tap * results * slide.source_pixel() + group * sources;
      Vec weights = {};
      for (int64_t o = 0; o < results; ++o, from += slide.source_pixel()) {
        const Vec sources_of = permute(load_some(from, bundle.sources), bundle.lane[i]);
        weights = select(bundle.result == static_cast<int32_t>(o), sources_of, weights);
      }
      store(to, weights);
    }
    to += kLanes;
  });
}

// Results along a row in a register tile, and in the two smaller tiles for the rest of a row.
constexpr int kTile = kRows < 12 ? 7 : 14, kHalfTile = 7, kSmallTile = 4;
constexpr int64_t kSurplus = 3;  // most results that a row's last tile computes beyond the row

// Returns the width of the next tile of a row, from the number of remaining results.
inline int64_t tile_width(int64_t rest) {
  return rest >= kTile - 2 ? kTile : rest > kSmallTile ? kHalfTile : kSmallTile;
}

// The input of a row of results: lines of the source, in a ring for each plane, and weights.
struct RowInput {
  const float* lines;
  int64_t ring;       // floats of a ring
  int64_t first;      // floats to the line of the first tap
  int64_t line_step;  // floats from one tap's line to the next
  int64_t planes, height, width;
  int64_t stride, step;  // pixels from one result to the next, and from one tap to the next
  const float* weights;  // [plane][height][width][kLanes]
};

// Adds kT taps to kQ sums. With a fixed stride (kStride > 0) the pixels that several results read stay in registers.
template <int kQ, int kT, int kStride>
JAXCNN_INLINE void add_taps(const float* line, int64_t stride, int64_t step, const float* weights, Vec (&sums)[kQ]) {
  Vec weight[kT];
#pragma GCC unroll 8
  for (int t = 0; t < kT; ++t) weight[t] = load(weights + t * kLanes);
  if constexpr (kStride > 0) {
#pragma GCC unroll 64
    for (int i = 0; i < (kQ - 1) * kStride + kT; ++i) {
      const Vec pixel = load(line + i * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        if (i >= t && (i - t) % kStride == 0 && (i - t) / kStride < kQ) sums[(i - t) / kStride] += pixel * weight[t];
      }
    }
  } else {
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 16
      for (int q = 0; q < kQ; ++q) sums[q] += load(line + (q * stride + t * step) * kLanes) * weight[t];
    }
  }
}

// Computes `count` results of a row from column `column` on, at most kQ.
template <int kQ, int kStride>
JAXCNN_INLINE void finish_tile(const RowInput& in, int64_t column, int64_t count, float* to, int64_t pitch,
                               int64_t lanes, const RegisterSteps& steps) {
  Vec sums[kQ];
#pragma GCC unroll 16
  for (int q = 0; q < kQ; ++q) sums[q] = Vec{};
  const float* weights = in.weights;
  for (int64_t plane = 0; plane < in.planes; ++plane) {
    const float* const ring = in.lines + plane * in.ring + column * in.stride * kLanes;
    int64_t place = in.first;
    for (int64_t h = 0; h < in.height; ++h) {
      const float* line = ring + place;
      place += in.line_step;
      if (place >= in.ring) place -= in.ring;
      int64_t taps = in.width;
      for (; taps > 7; taps -= 5, line += 5 * in.step * kLanes, weights += 5 * kLanes) {
        add_taps<kQ, 5, kStride>(line, in.stride, in.step, weights, sums);
      }
      switch (taps) {
#define JAXCNN_TAPS(n)                                                           \
  case n:                                                                        \
    add_taps<kQ, n, kStride>(line, in.stride, in.step, weights, sums);           \
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
      weights += taps * kLanes;
    }
  }
  const Vec scale = steps.scales(0, lanes), bias = steps.biases(0, lanes);
#pragma GCC unroll 16
  for (int q = 0; q < kQ; ++q) {
    if (q >= count) break;
    store_some(to, steps.apply(sums[q], scale, bias, to, lanes), lanes);
    to += pitch;
  }
}

// Computes a row of results, `pitch` floats apart. A kStride above 0 is the number of source pixels from one result to
// the next, with one pixel from tap to tap. With 0 both numbers are those of `in`.
template <int kStride>
__attribute__((noinline)) void finish_row(const RowInput& in, int64_t columns, float* to, int64_t pitch, int64_t lanes,
                                          const RegisterSteps& steps) {
  for (int64_t q = 0, width; q < columns; q += width, to += width * pitch) {
    width = tile_width(columns - q);
    const int64_t count = least(width, columns - q);
    if (width == kTile) {
      finish_tile<kTile, kStride>(in, q, count, to, pitch, lanes, steps);
    } else if (width == kHalfTile) {
      finish_tile<kHalfTile, kStride>(in, q, count, to, pitch, lanes, steps);
    } else {
      finish_tile<kSmallTile, kStride>(in, q, count, to, pitch, lanes, steps);
    }
  }
}

constexpr int64_t kRingFloats = 16 * 1024;     // floats of a task's rings, which stay in the first-level cache
constexpr int64_t kLeastColumns = 32;          // fewest results along a row that are worth a ring
constexpr int64_t kSegmentFloats = 64 * 1024;  // floats of all channels of a line that a task reads, bundle by bundle
constexpr int64_t kBandFloats = 128 * 1024;    // floats of the source that a band of rows reads

// The source pixels of one axis that the windows of several slides read for result 0. Slides without taps read none.
struct Span {
  int64_t first = 0, count = 1;
  int64_t results = 0, taps = 0;  // the most of a slide
  int64_t step = 1;               // from tap to tap

  Span(const Slide* slides, int64_t number, int axis) {
    for (int64_t i = 0; i < number; ++i) {
      const SlideAxis& a = slides[i].axis[axis];
      results = most(results, a.results);
      if (a.taps == 0) continue;
      const int64_t low = taps ? least(first, a.source_first) : a.source_first;
      const int64_t end = a.source_first + (a.taps - 1) * a.source_step + 1;
      count = (taps ? most(first + count, end) : end) - low;
      first = low;
      step = a.source_step;
      taps = most(taps, a.taps);
    }
  }
};

// What is written of one slide in each row.
struct RowWriter {
  RowInput in;
  int64_t first_line;     // floats of a ring from the oldest line to the line of the first tap
  int64_t rows, columns;  // of results
  float* to;              // the first result of channel 0
  int64_t step, row_floats;  // from one result to the next, and from one row to the next
};

// Computes slides of narrow groups that read the same source lines: one, or the phases of the role "input" along height
// and width.
inline void slide_narrow(const Slide* slides, int64_t number, const float* source, const float* kernel, float* result,
                         const Epilogue& epilogue, TaskRunner& runner) {
  const Slide& slide = slides[0];
  const Bundle bundle(slide);
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const Span height(slides, number, 1), width(slides, number, 2);
  const int64_t planes = da->taps * slide.source_channels;
  const int64_t most_columns = least(kRingFloats / kLanes / most(1, planes) / height.count,
                                     kSegmentFloats / slide.source_pixel()) / wa->source_stride;
  const int64_t segments = ceil_div(width.results, most(kLeastColumns, most_columns));
  const int64_t segment = ceil_div(width.results, segments);
  const int64_t length = (segment + kSurplus - 1) * wa->source_stride + width.count;
  const int64_t pitch = length * kLanes, ring = height.count * pitch;
  int64_t vectors = 0;
  for (int64_t i = 0; i < number; ++i) vectors += slides[i].taps() * slide.source_channels;

  // Tasks are blocks of a band of rows and a range of bundles.
  const int64_t wanted = runner.threads() > 1 ? 4 * runner.threads() : 1;
  // A last bundle that overlaps the one before is computed by the same task, since both write the same results. Bundles
  // whose results share cache lines are computed by one task, too, or processors would take the lines from each other.
  constexpr int64_t kTogether = most(1, kLineFloats / kLanes);
  const int64_t units = ceil_div(slide.groups % bundle.groups ? most(1, bundle.count - 1) : bundle.count, kTogether);
  const int64_t read_floats = most(1, da->taps) * wa->source_size * slide.source_pixel() * ha->source_stride;
  int64_t bands = most(1, least(height.results, ceil_div(height.results * read_floats, kBandFloats))), ranges = 1;
  const int64_t lines = slide.batch * da->results * segments;
  while (lines * bands * ranges < wanted && ranges < units) ++ranges;
  while (lines * bands * ranges < wanted && bands < height.results) ++bands;
  const bool covered = RegisterSteps::covers(epilogue);
  const bool fixed = width.step == 1 || width.taps <= 1;
  const auto row_function = fixed && wa->source_stride == 1   ? finish_row<1>
                            : fixed && wa->source_stride == 2 ? finish_row<2>
                                                              : finish_row<0>;

  parallel(runner, lines * bands * ranges, [&](int64_t task) {
    const int64_t first_unit = part_begin(units, ranges, task % ranges);
    const int64_t last_unit = part_begin(units, ranges, task % ranges + 1);
    int64_t rest = task / ranges;
    const int64_t first_row = part_begin(height.results, bands, rest % bands);
    const int64_t last_row = part_begin(height.results, bands, rest % bands + 1);
    rest /= bands;
    const int64_t first_column = rest % segments * segment;
    rest /= segments;
    const int64_t d = rest % da->results, image = rest / da->results;
    SlideAxis columns_axis = *wa;
    columns_axis.source_first = width.first;
    const SourceColumns line_columns(columns_axis, first_column, length);
    float* const rings = Scratch::floats(0, planes * ring);
    clear(rings, planes * ring);
    float* const weights = Scratch::floats(1, vectors * kLanes);
    RowWriter* const writers = Scratch::array<RowWriter>(4, number);
    float* slide_weights = weights;
    for (int64_t i = 0; i < number; slide_weights += slides[i++].taps() * slide.source_channels * kLanes) {
      const SlideAxis &rows = slides[i].axis[1], &columns = slides[i].axis[2];
      const int64_t plane = image * da->result_size + da->result_first + d * da->result_step;
      const int64_t line = plane * rows.result_size + rows.result_first + first_row * rows.result_step;
      const int64_t pixel = line * columns.result_size + columns.result_first + first_column * columns.result_step;
      const float* const from = rings + (columns.taps ? columns.source_first - width.first : 0) * kLanes;
      writers[i] = {{from, ring, 0, height.step * pitch, planes, rows.taps, columns.taps, wa->source_stride, width.step,
                     slide_weights},
                    rows.taps ? (rows.source_first - height.first) * pitch : 0,
                    rows.results,
                    least(segment, columns.results - first_column),
                    result + pixel * slide.result_pixel(),
                    columns.result_step * slide.result_pixel(),
                    rows.result_step * columns.result_size * slide.result_pixel()};
    }

    const int64_t last_bundle = last_unit == units ? bundle.count : last_unit * kTogether;
    for (int64_t index = first_unit * kTogether; index < last_bundle; ++index) {
      const int64_t group = bundle.first_group(slide, index), channel = group * slide.result_channels;
      float* packed = weights;
      for (int64_t i = 0; i < number; packed += slides[i++].taps() * slide.source_channels * kLanes) {
        pack_narrow(slides[i], bundle, kernel, group, packed);
      }
      const RegisterSteps steps = covered ? RegisterSteps(epilogue, channel, result) : RegisterSteps();
      // The next source line to be copied, and its place in a ring.
      int64_t next = first_row * ha->source_stride + height.first, place = 0;
      for (int64_t row = first_row; row < last_row; ++row) {
        const int64_t line = row * ha->source_stride + height.first;
        for (next = most(next, line); next < line + height.count; ++next) {
          for (int64_t td = 0; td < da->taps; ++td) {
            const int64_t sd = d * da->source_stride + da->source_first + td * da->source_step;
            float* const to = rings + td * slide.source_channels * ring + place;
            copy_line(slide, bundle, source + group * slide.source_channels, image, sd, next, line_columns, to, ring);
          }
          place = place + pitch == ring ? 0 : place + pitch;
        }
        for (int64_t i = 0; i < number; ++i) {
          RowWriter& writer = writers[i];
          if (row >= writer.rows || writer.columns <= 0) continue;
          // `place` is that of the oldest line.
          const int64_t first = place + writer.first_line;
          writer.in.first = first < ring ? first : first - ring;
          float* to = writer.to + channel + (row - first_row) * writer.row_floats;
          row_function(writer.in, writer.columns, to, writer.step, bundle.lanes, steps);
          for (int64_t q = 0; !covered && q < writer.columns; q += kRows) {
            float* places[kRows];
            for (int64_t r = 0; r < kRows; ++r, to += writer.step) places[r] = to;
            finish(places, least(kRows, writer.columns - q), bundle.lanes, channel, result, epilogue);
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

// Adds the products of source and result over a block to the sums of kT taps along the width, `step` pixels apart. The
// sums are vectors that follow each other. `source` is the source pixel of the first tap and the first result.
template <int kT>
__attribute__((noinline)) void add_products(const LineBlock& block, const float* source, int64_t step, float* sums) {
  constexpr int kU = kT > 6 ? 1 : kT > 4 ? 2 : 12 / (kT < 2 ? 2 : kT);
  Vec partial[kU][kT];
#pragma GCC unroll 12
  for (int u = 0; u < kU; ++u)
#pragma GCC unroll 12
    for (int t = 0; t < kT; ++t) partial[u][t] = Vec{};
  const int64_t pixels = block.column_step * kLanes;
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* from = source + r * block.row_step * block.source_columns * kLanes;
    const float* with = block.result + r * block.columns * kLanes;
    int64_t q = 0;
    for (; q + kU <= block.columns; q += kU, from += kU * pixels, with += kU * kLanes) {
#pragma GCC unroll 12
      for (int u = 0; u < kU; ++u) {
        const Vec value = load(with + u * kLanes);
#pragma GCC unroll 12
        for (int t = 0; t < kT; ++t) partial[u][t] += load(from + u * pixels + t * step * kLanes) * value;
      }
    }
    for (; q < block.columns; ++q, from += pixels, with += kLanes) {
      const Vec value = load(with);
#pragma GCC unroll 12
      for (int t = 0; t < kT; ++t) partial[0][t] += load(from + t * step * kLanes) * value;
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < kT; ++t) {
    Vec sum = partial[0][t];
#pragma GCC unroll 12
    for (int u = 1; u < kU; ++u) sum += partial[u][t];
    store(sums + t * kLanes, load(sums + t * kLanes) + sum);
  }
}

using ProductAdder = void (*)(const LineBlock&, const float*, int64_t, float*);
constexpr ProductAdder kProductAdders[] = {add_products<1>, add_products<2>, add_products<3>, add_products<4>,
                                           add_products<5>, add_products<6>, add_products<7>, add_products<8>};
constexpr int64_t kMostTaps = 8;  // most taps of one call of a product adder

constexpr int64_t kMostColumns = 256;        // most results along a row of a block
constexpr int64_t kBlockFloats = 8192;       // most floats of the source lines of a block, of one plane
constexpr int64_t kNarrowPartPixels = 1024;  // fewest pixels of a part with sums of its own

// Computes the role "kernel" for narrow groups.
inline void kernel_narrow(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const Slide slide = forward_slide(p);
  const Bundle bundle(slide);
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const int64_t sources = slide.source_channels, pixel = slide.result_pixel();
  // Blocks of rows and columns whose lines stay in the first-level cache.
  const int64_t segments = ceil_div(wa->results, kMostColumns), segment = ceil_div(wa->results, segments);
  const int64_t length = (segment - 1) * wa->source_stride + (wa->taps - 1) * wa->source_step + 1;
  const int64_t reach = (ha->taps - 1) * ha->source_step + 1, pitch = length * kLanes;
  const int64_t bands = ceil_div(ha->results, most(0, kBlockFloats / pitch - reach) / ha->source_stride + 1);
  const int64_t band = ceil_div(ha->results, bands);
  const int64_t plane = ((band - 1) * ha->source_stride + reach) * pitch;
  const int64_t blocks = slide.batch * da->results * bands * segments;
  // The parts of the blocks depend on the shape alone, so that results do not depend on the number of threads.
  constexpr int64_t kTasks = 16, kMostNarrowParts = 8;
  const int64_t most_parts = least(blocks, slide.batch * slide.results() / kNarrowPartPixels);
  const int64_t parts = most(1, least(least(kMostNarrowParts, ceil_div(kTasks, bundle.count)), most_parts));
  const int64_t part_blocks = ceil_div(blocks, parts);
  const int64_t vectors = slide.taps() * sources, size = vectors * kLanes;
  float* const sums = Scratch::floats(3, parts * bundle.count * size);

  parallel(runner, parts * bundle.count, [&](int64_t task) {
    const int64_t part = task / bundle.count, group = bundle.first_group(slide, task % bundle.count);
    clear(sums + task * size, size);
    float* const source_lines = Scratch::floats(0, sources * plane);
    float* const result_lines = Scratch::floats(1, band * segment * kLanes);
    for (int64_t number = part * part_blocks; number < least((part + 1) * part_blocks, blocks); ++number) {
      const int64_t first_column = number % segments * segment, first_row = number / segments % bands * band;
      const int64_t d = number / segments / bands % da->results, image = number / segments / bands / da->results;
      const int64_t rows = least(band, ha->results - first_row), columns = least(segment, wa->results - first_column);
      if (rows <= 0 || columns <= 0) continue;
      // Columns outside of the source are the same for all lines.
      const SourceColumns line_columns(*wa, first_column, length);
      if (segments > 1 || number == part * part_blocks) clear(source_lines, sources * plane);
      LineBlock block = {source_lines, result_lines, length, rows, columns, ha->source_stride, wa->source_stride};
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t line = (image * da->results + d) * ha->results + first_row + r;
        const float* from = y + (line * wa->results + first_column) * pixel + group * slide.result_channels;
        float* to = result_lines + r * columns * kLanes;
        for (int64_t q = 0; q < columns; ++q, from += pixel, to += kLanes) store(to, load_some(from, bundle.lanes));
      }
      float* to = sums + task * size;
      for (int64_t td = 0; td < da->taps; ++td) {
        const int64_t sd = d * da->source_stride + da->source_first + td * da->source_step;
        for (int64_t l = 0; l < (rows - 1) * ha->source_stride + reach; ++l) {
          const int64_t sh = first_row * ha->source_stride + ha->source_first + l;
          copy_line(slide, bundle, x + group * sources, image, sd, sh, line_columns, source_lines + l * pitch, plane);
        }
        for (int64_t i = 0; i < sources; ++i) {
          for (int64_t h = 0; h < ha->taps; ++h) {
            const float* const line = source_lines + i * plane + h * ha->source_step * pitch;
            for (int64_t w = 0, count; w < wa->taps; w += count, to += count * kLanes) {
              count = least(kMostTaps, wa->taps - w);
              kProductAdders[count - 1](block, line + w * wa->source_step * kLanes, wa->source_step, to);
            }
          }
        }
      }
    }
  });
  for (int64_t index = 0; index < bundle.count; ++index) {
    float* const to = kernel + bundle.first_group(slide, index) * slide.result_channels;
    const float* from = sums + index * size;
    for_each_vector(slide, [&](int64_t tap, int64_t i) {
      Vec sum = load(from);
      for (int64_t part = 1; part < parts; ++part) sum += load(from + part * bundle.count * size);
      store_some(to + (tap * sources + i) * pixel, sum, bundle.lanes);
      from += kLanes;
    });
  }
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
