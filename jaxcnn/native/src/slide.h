// The slide of a window over a source image, the common form of the roles "output" and "input": each result is a sum
// over taps of the source's pixels times the kernel.
#pragma once

#include "simd.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

// One spatial axis of a slide. Result number q is the sum over the taps j of two factors: the source's pixel
// q * source_stride + source_first + j * source_step, zero outside of the source, and the kernel's tap
// kernel_first + j * kernel_step. It is stored at pixel result_first + q * result_step of the result.
struct SlideAxis {
  int64_t results;
  int64_t taps;
  int64_t source_size;
  int64_t source_stride;
  int64_t source_first;
  int64_t source_step;
  int64_t kernel_first;
  int64_t kernel_step;
  int64_t result_size;
  int64_t result_first;
  int64_t result_step;
};

// A slide over all axes.
struct Slide {
  SlideAxis axis[3];
  int64_t batch;
  int64_t window[3];        // of the whole kernel
  int64_t groups;
  int64_t source_channels;  // of a group
  int64_t result_channels;  // of a group
  bool transposed;          // whether the kernel is read as (..., result channel, source channel)

  int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
  int64_t results() const { return axis[0].results * axis[1].results * axis[2].results; }
  int64_t source_pixel() const { return groups * source_channels; }
  int64_t result_pixel() const { return groups * result_channels; }
  int64_t kernel_tap(int64_t d, int64_t h, int64_t w) const {
    const int64_t kd = axis[0].kernel_first + d * axis[0].kernel_step;
    const int64_t kh = axis[1].kernel_first + h * axis[1].kernel_step;
    const int64_t kw = axis[2].kernel_first + w * axis[2].kernel_step;
    return (kd * window[1] + kh) * window[2] + kw;
  }
};

// Returns the slide of the role "output".
inline Slide forward_slide(const ConvProblem& p) {
  Slide slide = {};
  for (int a = 0; a < 3; ++a) {
    slide.axis[a] = {p.out[a], p.window[a], p.in[a], p.stride[a], -p.pad_low[a], p.dilation[a], 0, 1, p.out[a], 0, 1};
    slide.window[a] = p.window[a];
  }
  slide.batch = p.batch;
  slide.groups = p.groups;
  slide.source_channels = p.in_channels / p.groups;
  slide.result_channels = p.out_channels / p.groups;
  slide.transposed = false;
  return slide;
}

// Returns one axis of the role "input" for one phase, the input pixels of one residue by the stride. Pixel
// j = phase + stride * q gets y[o] k[t] where o * stride + t * dilation = j + pad_low, so only taps of one residue
// class reach the phase.
inline SlideAxis phase_axis(const ConvProblem& p, int a, int64_t phase) {
  const int64_t stride = p.stride[a], dilation = p.dilation[a];
  SlideAxis axis = {};
  axis.source_step = 1;
  axis.results = phase < p.in[a] ? ceil_div(p.in[a] - phase, stride) : 0;
  axis.source_size = p.out[a];
  axis.source_stride = 1;
  axis.result_size = p.in[a];
  axis.result_first = phase;
  axis.result_step = stride;
  int64_t common = stride, rest = dilation;
  while (rest) {
    const int64_t next = common % rest;
    common = rest;
    rest = next;
  }
  const int64_t step = stride / common;
  for (int64_t tap = 0; tap < least(step, p.window[a]); ++tap) {
    const int64_t distance = phase + p.pad_low[a] - tap * dilation;
    if (distance % stride) continue;
    axis.taps = ceil_div(p.window[a] - tap, step);
    // The taps go from the last to the first: in this order they read the source from left to right.
    axis.kernel_first = tap + (axis.taps - 1) * step;
    axis.kernel_step = -step;
    axis.source_step = dilation / common;
    axis.source_first = distance / stride - (axis.taps - 1) * axis.source_step;
    break;
  }
  return axis;
}

// Returns the slide of one phase of the role "input".
inline Slide phase_slide(const ConvProblem& p, int64_t depth, int64_t height, int64_t width) {
  Slide slide = forward_slide(p);
  slide.source_channels = p.out_channels / p.groups;
  slide.result_channels = p.in_channels / p.groups;
  slide.transposed = true;
  const int64_t phases[3] = {depth, height, width};
  for (int a = 0; a < 3; ++a) slide.axis[a] = phase_axis(p, a, phases[a]);
  return slide;
}

// Finds the taps [first, last) of one axis that read inside of the source for result q.
JAXCNN_INLINE void taps_inside(const SlideAxis& axis, int64_t q, int64_t* first, int64_t* last) {
  const int64_t at = q * axis.source_stride + axis.source_first, step = axis.source_step;
  const int64_t low = at < 0 ? ceil_div(-at, step) : 0;
  const int64_t high = at < axis.source_size ? (axis.source_size - 1 - at) / step + 1 : 0;
  *first = least(low, axis.taps);
  *last = most(*first, least(high, axis.taps));
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
