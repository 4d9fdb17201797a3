// The interface between the FFI handlers and the kernels, which are compiled once for each instruction set.
//
// Arrays are dense and channels-last: images (batch, depth, height, width, channels), kernels
// (depth, height, width, in_channels / groups, out_channels). Fewer spatial axes have leading sizes of 1.
#pragma once

#include <cstdint>

namespace jaxcnn {

// The shapes and options of one convolution; arrays of three are (depth, height, width).
struct ConvProblem {
  int64_t batch;
  int64_t in[3];
  int64_t out[3];
  int64_t window[3];
  int64_t stride[3];
  int64_t pad_low[3];
  int64_t dilation[3];
  int64_t groups;
  int64_t in_channels;
  int64_t out_channels;
};

enum class Activation : int64_t {
  kNone = 0,
  kRelu,
  kRelu6,
  kLeakyRelu,
  kSilu,
  kHardSwish,
  kGeluTanh,
  kGeluErf,
  kSigmoid,
  kTanh,
  kHardSigmoid,
};

// The steps y = activation(conv * scale + bias + residual). A null pointer leaves its step out.
struct Epilogue {
  const float* scale = nullptr;
  const float* bias = nullptr;
  const float* residual = nullptr;
  Activation activation = Activation::kNone;
  float alpha = 0.0f;
};

// Runs body(context, index) for each index below `tasks`, on several threads, and returns when all are done.
struct TaskRunner {
  virtual void run(int64_t tasks, void (*body)(void* context, int64_t index), void* context) = 0;
  virtual int64_t threads() const = 0;

 protected:
  ~TaskRunner() = default;
};

using OutputKernel = void (*)(const ConvProblem&, const float* x, const float* kernel, float* y, const Epilogue&,
                              bool tiles, TaskRunner&);
using InputKernel = void (*)(const ConvProblem&, const float* y, const float* kernel, float* x, const Epilogue&,
                             bool tiles, TaskRunner&);
using KernelKernel = void (*)(const ConvProblem&, const float* x, const float* y, float* kernel, TaskRunner&);

// The kernels of one instruction set. `tiles` allows tiles of fewer products for windows that have them; their errors
// are larger.
struct KernelTable {
  const char* name;
  OutputKernel output;
  InputKernel input;
  KernelKernel kernel;
};

// The table of the best instruction set that this processor has.
const KernelTable& kernels();

}  // namespace jaxcnn
