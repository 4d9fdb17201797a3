// What the library exports: XLA's handlers, and which instruction set they use.
#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxcnn {
namespace {

const Kernels& pick() {
#if JAXCNN_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return avx512::kernels;
#endif
#if JAXCNN_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels;
#endif
#if JAXCNN_HAS_NEON
  return neon::kernels;
#else
  return baseline::kernels;
#endif
}

const Kernels& kernels = pick();

struct CallerRunner final : TaskRunner {
  void run(int64_t tasks, const std::function<void(int64_t)>& body) override {
    for (int64_t task = 0; task < tasks; task++) body(task);
  }
  int64_t threads() const override { return 1; }
};

ffi::Error conv(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> kernel, ffi::ResultBuffer<ffi::F32> y) {
  const auto in = x.dimensions(), window = kernel.dimensions(), out = y->dimensions();
  if (in.size() != 5 || window.size() != 5 || out.size() != 5)
    return ffi::Error::InvalidArgument("jaxcnn_conv: images and kernels have three spatial axes");
  ConvProblem p{};
  p.batch = in[0];
  p.in_channels = in[4];
  p.out_channels = out[4];
  p.groups = 1;
  if (out[0] != p.batch || window[3] != p.in_channels || window[4] != p.out_channels)
    return ffi::Error::InvalidArgument("jaxcnn_conv: batch or channels of the operands differ");
  for (int axis = 0; axis < 3; axis++) {
    p.in[axis] = in[1 + axis];
    p.out[axis] = out[1 + axis];
    p.window[axis] = window[axis];
    p.stride[axis] = p.dilation[axis] = 1;
  }
  CallerRunner runner;
  kernels.conv_output(p, x.typed_data(), kernel.typed_data(), y->typed_data(), Epilogue{}, nullptr, runner);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxcnn

#define JAXCNN_EXPORT extern "C" __attribute__((visibility("default")))

JAXCNN_EXPORT const char* jaxcnn_native_instruction_set() { return jaxcnn::kernels.name; }

JAXCNN_EXPORT int jaxcnn_native_abi_version() { return 1; }

// The definition takes its visibility from the declaration before it.
#define JAXCNN_HANDLER(name, ...)                           \
  JAXCNN_EXPORT XLA_FFI_Error* name(XLA_FFI_CallFrame*);    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, __VA_ARGS__)

JAXCNN_HANDLER(jaxcnn_conv, jaxcnn::conv,
               ffi::Ffi::Bind()
                   .Arg<ffi::Buffer<ffi::F32>>()
                   .Arg<ffi::Buffer<ffi::F32>>()
                   .Ret<ffi::Buffer<ffi::F32>>());
