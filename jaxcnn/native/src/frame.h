// What the windows of a block of pixels read: where each window and each of its runs of floats begin.
#pragma once

#include "slide.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

constexpr int64_t kLineFloats = 16;  // floats of a cache line
constexpr int64_t kConflict = 256;   // pixels this many floats apart share few sets of the first-level cache

// A run of memory that the window of every pixel reads, in floats from the beginning of the window.
struct Segment {
  int64_t offset;
  int64_t count;
};

// Ranges of a slide's results, each computed by one task: parts of a row, or parts of all results in order.
struct PixelBlocks {
  int64_t row, pixels, parts, count;

  // `in_order` allows blocks that begin and end anywhere.
  PixelBlocks(const Slide& slide, int64_t wanted, bool in_order) {
    row = slide.axis[2].results;
    const int64_t all = slide.batch * slide.results();
    parts = row > wanted && !in_order ? ceil_div(row, wanted) : 0;
    pixels = parts ? ceil_div(row, parts) : ceil_div(all, ceil_div(all, wanted));
    count = parts ? all / row * parts : ceil_div(all, pixels);
  }
  int64_t first(int64_t block) const { return parts ? block / parts * row + block % parts * pixels : block * pixels; }
  int64_t end(int64_t block, int64_t all) const {
    return least(first(block) + pixels, parts ? (block / parts + 1) * row : all);
  }
};

// Returns the pixels from the first to the last tap of a window, on one axis.
inline int64_t reach(const SlideAxis& axis) { return (axis.taps - 1) * axis.source_step + 1; }

// Returns whether no window reaches beyond the source's edges.
inline bool reads_inside(const Slide& slide) {
  if (slide.taps() == 0) return true;
  bool inside = true;
  for (const SlideAxis& axis : slide.axis) {
    const int64_t last = axis.source_first + (axis.results - 1) * axis.source_stride + reach(axis) - 1;
    inside = inside && axis.source_first >= 0 && last < axis.source_size;
  }
  return inside;
}

// The memory that the windows of a block's pixels read: the source itself if no window reaches beyond its edges, else a
// copy of the rows that the windows reach, with zeros for padding. A tap has the same distance from the
// beginning of the window in all windows.
class Frame {
 public:
  // `copied` forces a copy, which is long enough to read kColumns floats from any float of any window.
  Frame(const Slide& slide, const PixelBlocks& blocks, bool copied = false)
      : slide_(slide), whole_rows_(!blocks.parts) {
    const int64_t width = slide.axis[2].results;
    const int64_t all_rows = slide.batch * slide.results() / width;
    const int64_t rows = whole_rows_ ? least((blocks.pixels + width - 2) / width + 1, all_rows) : 1;
    const int64_t results[3] = {1, rows, whole_rows_ ? width : blocks.pixels};
    in_place_ = reads_inside(slide) && !copied;
    for (int a = 0; a < 3; ++a) {
      const SlideAxis& axis = slide.axis[a];
      const int64_t span = reach(axis) + (results[a] - 1) * axis.source_stride;
      apart_[a] = span > results[a] * axis.taps;
    }
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
      pitch_[2] = slide.source_channels + (slide.source_channels % kConflict == 0 ? kLineFloats : 0);
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
    const int64_t left = source_of(2, w, 0), pitch = pitch_[2];
    const int64_t low = least(width, most(0, -left)), high = most(low, least(width, wa->source_size - left));
    for (int64_t i = 0, height = size(1, rows); i < height; ++i) {
      const int64_t sh = source_of(1, h, i);
      for (int64_t td = 0; td < da->taps; ++td, to += pitch_[0]) {
        const int64_t sd = source_of(0, d, 0) + td * da->source_step;
        if (!inside(sd, *da) || !inside(sh, *ha)) {
          clear(to, width * pitch);
          continue;
        }
        const int64_t row = (image * da->source_size + sd) * ha->source_size + sh;
        const float* const line = source + row * wa->source_size * pixel;
        if (apart_[2]) {
          for (int64_t j = 0; j < width; ++j) {
            const int64_t sw = source_of(2, w, j);
            inside(sw, *wa) ? copy(to + j * pitch, line + sw * pixel, channels) : clear(to + j * pitch, channels);
          }
          continue;
        }
        clear(to, low * pitch);
        if (pixel == pitch) {
          if (low < high) copy(to + low * pitch, line + (left + low) * pixel, (high - low) * pitch);
        } else {
          for (int64_t j = low; j < high; ++j) copy(to + j * pitch, line + (left + j) * pixel, channels);
        }
        clear(to + high * pitch, (width - high) * pitch);
      }
    }
  }

  const Slide& slide_;
  const bool whole_rows_;
  bool in_place_, merged_, apart_[3];
  int64_t stride_[3], step_[3], pitch_[3], floats_;
};

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
