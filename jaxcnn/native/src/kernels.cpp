// The kernels of one instruction set: compiled several times, with JAXCNN_ISA naming the namespace.
#include "dense.h"
#include "gradient.h"
#include "narrow.h"
#include "tiles.h"

namespace jaxcnn {
namespace JAXCNN_ISA {
namespace {

// Returns whether vectors over several groups take fewer instructions than products over one group's channels. The
// estimate counts the used lanes, and a permutation beside each product.
bool is_narrow(const Slide& slide) {
  const int64_t sources = slide.source_channels, results = slide.result_channels;
  if (slide.groups == 1 || !fits_narrow(sources, results)) return false;
  const int64_t cost = sources == 1 && results == 1 ? 1 : 2;
  return Bundle(slide).lanes >= cost * results;
}

void slide(Slide slide, const float* source, const float* kernel, float* result, const Epilogue& epilogue, bool tiles,
           TaskRunner& runner) {
  // A sum over no channels equals the sum of a window without taps over an image without pixels.
  if (slide.source_channels == 0) {
    slide.source_channels = 1;
    for (int a = 0; a < 3; ++a) slide.window[a] = slide.axis[a].taps = slide.axis[a].source_size = 0;
  }
  if (tiles && fits_tiles(slide)) {
    slide_tiles(slide, source, kernel, result, epilogue, runner);
  } else if (is_narrow(slide)) {
    slide_narrow(&slide, 1, source, kernel, result, epilogue, runner);
  } else if (pays_to_spread(slide)) {
    slide_spread(slide, source, kernel, result, epilogue, runner);
  } else {
    slide_dense(slide, source, kernel, result, epilogue, runner);
  }
}

void output(const ConvProblem& p, const float* x, const float* kernel, float* y, const Epilogue& epilogue, bool tiles,
            TaskRunner& runner) {
  slide(forward_slide(p), x, kernel, y, epilogue, tiles, runner);
}

void input(const ConvProblem& p, const float* y, const float* kernel, float* x, const Epilogue& epilogue, bool tiles,
           TaskRunner& runner) {
  const int64_t strides[3] = {least(p.stride[0], p.in[0]), least(p.stride[1], p.in[1]), least(p.stride[2], p.in[2])};
  const Slide first = phase_slide(p, 0, 0, 0);
  const bool together = first.source_channels > 0 && is_narrow(first) && !(tiles && fits_tiles(first));
  for (int64_t depth = 0; depth < strides[0]; ++depth) {
    int64_t count = 0;
    Slide* const phases = together ? Scratch::array<Slide>(2, strides[1] * strides[2]) : nullptr;
    for (int64_t h = 0; h < strides[1]; ++h) {
      for (int64_t w = 0; w < strides[2]; ++w) {
        const Slide phase = phase_slide(p, depth, h, w);
        if (together) {
          phases[count++] = phase;
        } else {
          slide(phase, y, kernel, x, epilogue, tiles, runner);
        }
      }
    }
    if (count > 0) slide_narrow(phases, count, y, kernel, x, epilogue, runner);
  }
}

void kernel(const ConvProblem& p, const float* x, const float* y, float* kernel, TaskRunner& runner) {
  const int64_t sources = p.in[0] * p.in[1] * p.in[2], results = p.out[0] * p.out[1] * p.out[2];
  if (p.batch == 0 || sources == 0 || results == 0) {  // sums over nothing
    clear(kernel, p.window[0] * p.window[1] * p.window[2] * (p.in_channels / p.groups) * p.out_channels);
    return;
  }
  if (is_narrow(forward_slide(p))) {
    kernel_narrow(p, x, y, kernel, runner);
  } else {
    kernel_dense(p, x, y, kernel, runner);
  }
}

}  // namespace

extern const KernelTable kTable = {JAXCNN_ISA_NAME, output, input, kernel};

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
