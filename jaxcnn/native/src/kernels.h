// The kernels' entry points. They know nothing of XLA.
#pragma once

#include <cstdint>
#include <functional>

namespace jaxcnn {

// One convolution, always of three spatial axes: of fewer axes the first are 1. Images are NDHWC, kernels DHWIO with
// I = in_channels / groups.
struct ConvProblem {
  int64_t batch;
  int64_t in[3], out[3], window[3], stride[3], pad_low[3], dilation[3];
  int64_t groups, in_channels, out_channels;
};

// What is done to an output before it is stored; null where unused.
struct Epilogue {
  const float* scale;
  const float* bias;
  const float* residual;
  int activation;
  float alpha;
};

struct TaskRunner {
  virtual ~TaskRunner() = default;
  virtual void run(int64_t tasks, const std::function<void(int64_t)>& body) = 0;
  virtual int64_t threads() const = 0;
};

struct Kernels {
  const char* name;
  void (*conv_output)(const ConvProblem&, const float* x, const float* kernel, float* y, const Epilogue&, float* scratch,
                      TaskRunner&);
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace neon { extern const Kernels kernels; }

}  // namespace jaxcnn
