// The kernels of one instruction set, in a namespace of its name.
#include "kernels.h"

#define JAXCNN_STRING_OF(text) #text
#define JAXCNN_STRING(macro) JAXCNN_STRING_OF(macro)

namespace jaxcnn::JAXCNN_ISA_NAMESPACE {
namespace {

void conv_output(const ConvProblem& p, const float* x, const float* kernel, float* y, const Epilogue&, float*,
                 TaskRunner& runner) {
  const int64_t group_in = p.in_channels / p.groups, group_out = p.out_channels / p.groups;
  runner.run(p.batch * p.out[0] * p.out[1], [&](int64_t row) {
    const int64_t n = row / (p.out[0] * p.out[1]), d = row / p.out[1] % p.out[0], h = row % p.out[1];
    for (int64_t w = 0; w < p.out[2]; w++) {
      float* pixel = y + (row * p.out[2] + w) * p.out_channels;
      for (int64_t o = 0; o < p.out_channels; o++) pixel[o] = 0;
      for (int64_t i = 0; i < p.window[0]; i++)
        for (int64_t j = 0; j < p.window[1]; j++)
          for (int64_t k = 0; k < p.window[2]; k++) {
            const int64_t a = d * p.stride[0] - p.pad_low[0] + i * p.dilation[0];
            const int64_t b = h * p.stride[1] - p.pad_low[1] + j * p.dilation[1];
            const int64_t c = w * p.stride[2] - p.pad_low[2] + k * p.dilation[2];
            if (a < 0 || a >= p.in[0] || b < 0 || b >= p.in[1] || c < 0 || c >= p.in[2]) continue;
            const float* source = x + (((n * p.in[0] + a) * p.in[1] + b) * p.in[2] + c) * p.in_channels;
            const float* tap = kernel + ((i * p.window[1] + j) * p.window[2] + k) * group_in * p.out_channels;
            for (int64_t q = 0; q < group_in; q++)
              for (int64_t o = 0; o < p.out_channels; o++)
                pixel[o] += source[o / group_out * group_in + q] * tap[q * p.out_channels + o];
          }
    }
  });
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {JAXCNN_STRING(JAXCNN_ISA_NAMESPACE), conv_output};

}  // namespace jaxcnn::JAXCNN_ISA_NAMESPACE
