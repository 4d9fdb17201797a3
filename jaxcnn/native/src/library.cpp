// The handlers that XLA calls, and the choice of an instruction set when the library is loaded.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "xla/ffi/api/c_api.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxcnn {

#if defined(__x86_64__)
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
#endif
namespace baseline {
extern const KernelTable kTable;
}

const KernelTable& kernels() {
#if defined(__x86_64__)
  static const KernelTable& table = [&]() -> const KernelTable& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      return avx512::kTable;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kTable;
    return baseline::kTable;
  }();
  return table;
#else
  return baseline::kTable;
#endif
}

namespace {

// A loop that hands out its indices one by one. The calling thread takes part, so that the loop ends even if no other
// thread is free. A thread that comes late gets no index and touches nothing but the counter.
class Loop {
 public:
  Loop(int64_t tasks, void (*body)(void*, int64_t), void* context) : tasks_(tasks), body_(body), context_(context) {}

  void work() {
    int64_t done = 0;
    for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_; ++done) {
      body_(context_, index);
    }
    if (done > 0 && done_.fetch_add(done, std::memory_order_acq_rel) + done == tasks_) {
      std::lock_guard<std::mutex> lock(mutex_);
      finished_ = true;
      condition_.notify_all();
    }
  }

  void wait() {
    // The other threads are in their last tasks, which usually end sooner than a sleeping thread would wake.
    for (int spin = 0; spin < kSpins; ++spin) {
      if (done_.load(std::memory_order_acquire) == tasks_) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock<std::mutex> lock(mutex_);
    condition_.wait(lock, [this] { return finished_; });
  }

 private:
  static constexpr int kSpins = 2000;
  const int64_t tasks_;
  void (*const body_)(void*, int64_t);
  void* const context_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable condition_;
  bool finished_ = false;
};

// Runs tasks on XLA's thread pool.
class PoolRunner final : public TaskRunner {
 public:
  explicit PoolRunner(ffi::ThreadPool& pool) : pool_(pool), threads_(std::max<int64_t>(1, pool.num_threads())) {}

  void run(int64_t tasks, void (*body)(void*, int64_t), void* context) override {
    if (tasks <= 1 || threads_ == 1) {
      for (int64_t index = 0; index < tasks; ++index) body(context, index);
      return;
    }
    auto loop = std::make_shared<Loop>(tasks, body, context);
    const int64_t helpers = std::min(threads_, tasks) - 1;
    for (int64_t i = 0; i < helpers; ++i) pool_.Schedule([loop] { loop->work(); });
    loop->work();
    loop->wait();
  }

  int64_t threads() const override { return threads_; }

 private:
  ffi::ThreadPool& pool_;
  const int64_t threads_;
};

// Asks the system for large pages under the parts of an array that were never written to. The C library returns memory
// of more than 32 MB to the system after each call, and small pages take longer to appear than a layer to compute.
void ask_for_large_pages(void* array, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(array) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(array) + bytes + kPage - 1) / kPage * kPage;
  if (bytes >= kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

using Floats = ffi::Buffer<ffi::F32>;
using Sizes = ffi::Span<const int64_t>;

ffi::Error invalid(const std::string& message) { return ffi::Error::InvalidArgument("jaxcnn: " + message); }

// Fills a problem from the arrays' shapes and the attributes, and checks their consistency, so that no kernel reads or
// writes beyond an array.
ffi::Error read_problem(Sizes x, Sizes kernel, Sizes y, Sizes strides, Sizes pad_low, Sizes dilation, int64_t groups,
                        ConvProblem* p) {
  const size_t rank = strides.size();
  if (rank > 3 || pad_low.size() != rank || dilation.size() != rank || x.size() != rank + 2 || y.size() != rank + 2 ||
      kernel.size() != rank + 2) {
    return invalid("arrays and options must have the same number of spatial axes, at most 3");
  }
  // Offsets have 64 bits: the limit on sizes keeps products of a few sizes within them.
  constexpr int64_t kLargest = int64_t{1} << 31;
  for (const Sizes& sizes : {x, kernel, y}) {
    for (int64_t size : sizes) {
      if (size < 0 || size > kLargest) return invalid("an axis has " + std::to_string(size) + " elements");
    }
  }
  p->batch = x[0];
  p->groups = groups;
  p->in_channels = x[rank + 1];
  p->out_channels = y[rank + 1];
  if (groups < 1 || p->in_channels % groups || p->out_channels % groups) {
    return invalid(std::to_string(groups) + " groups do not divide the channels, " + std::to_string(p->in_channels) +
                   " in and " + std::to_string(p->out_channels) + " out");
  }
  if (y[0] != x[0] || kernel[rank] != p->in_channels / groups || kernel[rank + 1] != p->out_channels) {
    return invalid("the kernel's channels or the batch do not fit the images");
  }
  const size_t lead = 3 - rank;
  for (size_t a = 0; a < 3; ++a) {
    const bool real = a >= lead;
    const size_t i = a - lead;
    p->in[a] = real ? x[i + 1] : 1;
    p->out[a] = real ? y[i + 1] : 1;
    p->window[a] = real ? kernel[i] : 1;
    p->stride[a] = real ? strides[i] : 1;
    p->pad_low[a] = real ? pad_low[i] : 0;
    p->dilation[a] = real ? dilation[i] : 1;
    if (p->stride[a] < 1 || p->dilation[a] < 1 || p->stride[a] > kLargest || p->dilation[a] > kLargest ||
        p->pad_low[a] < -kLargest || p->pad_low[a] > kLargest) {
      return invalid("strides and dilations must be positive, and all options below 2^31");
    }
  }
  return ffi::Error::Success();
}

bool has_no_elements(Sizes sizes) { return std::find(sizes.begin(), sizes.end(), 0) != sizes.end(); }

// Computes the role "output" or, if `transposed`, "input", and the epilogue. `operands` has a bit for each of scale,
// bias and residual, in this order; `extras` are the arrays whose bits are set. `tiles` is that of `KernelTable`.
ffi::Error output_handler(ffi::ThreadPool pool, Floats x, Floats kernel, ffi::RemainingArgs extras,
                          ffi::Result<Floats> y, Sizes strides, Sizes pad_low, Sizes dilation, int64_t groups,
                          int64_t operands, int64_t activation, float alpha, bool transposed, bool tiles) {
  ConvProblem p;
  // In the role "input" the first operand is y and the result x.
  const Sizes image = transposed ? y->dimensions() : x.dimensions();
  const Sizes results = transposed ? x.dimensions() : y->dimensions();
  if (auto error = read_problem(image, kernel.dimensions(), results, strides, pad_low, dilation, groups, &p);
      error.failure()) {
    return error;
  }
  Epilogue epilogue;
  if (activation < 0 || activation > static_cast<int64_t>(Activation::kHardSigmoid)) {
    return invalid("there is no activation " + std::to_string(activation));
  }
  epilogue.activation = static_cast<Activation>(activation);
  epilogue.alpha = alpha;
  const int64_t channels = y->dimensions()[y->dimensions().size() - 1];
  // `operands` has a bit for each of scale, bias and residual, in this order.
  size_t next = 0;
  const float** const places[3] = {&epilogue.scale, &epilogue.bias, &epilogue.residual};
  std::vector<float> repeated[2];
  for (int i = 0; i < 3; ++i) {
    if (!(operands >> i & 1)) continue;
    auto extra = extras.get<Floats>(next++);
    if (extra.has_error()) return invalid("an operand of the epilogue is missing or no float32 array");
    const size_t wanted = i == 2 ? y->element_count() : static_cast<size_t>(channels);
    if (i < 2 && extra->element_count() == 1) {
      // One number for all channels: XLA would compile a loop to repeat it.
      repeated[i].assign(wanted, *extra->typed_data());
      *places[i] = repeated[i].data();
      continue;
    }
    if (extra->element_count() != wanted) {
      return invalid("an operand of the epilogue has " + std::to_string(extra->element_count()) + " elements, not " +
                     std::to_string(wanted));
    }
    *places[i] = extra->typed_data();
  }
  if (next != extras.size()) return invalid("the epilogue has operands that it does not name");
  if (has_no_elements(y->dimensions())) return ffi::Error::Success();
  PoolRunner runner(pool);
  const auto run = transposed ? kernels().input : kernels().output;
  ask_for_large_pages(y->typed_data(), y->size_bytes());
  run(p, x.typed_data(), kernel.typed_data(), y->typed_data(), epilogue, tiles, runner);
  return ffi::Error::Success();
}

// Computes the role "kernel".
ffi::Error kernel_handler(ffi::ThreadPool pool, Floats x, Floats y, ffi::Result<Floats> kernel, Sizes strides,
                          Sizes pad_low, Sizes dilation, int64_t groups) {
  ConvProblem p;
  if (auto error = read_problem(x.dimensions(), kernel->dimensions(), y.dimensions(), strides, pad_low, dilation,
                                groups, &p);
      error.failure()) {
    return error;
  }
  if (has_no_elements(kernel->dimensions())) return ffi::Error::Success();
  PoolRunner runner(pool);
  ask_for_large_pages(kernel->typed_data(), kernel->size_bytes());
  kernels().kernel(p, x.typed_data(), y.typed_data(), kernel->typed_data(), runner);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxcnn

#define JAXCNN_EXPORT extern "C" __attribute__((visibility("default")))

JAXCNN_EXPORT const char* jaxcnn_native_instruction_set() { return jaxcnn::kernels().name; }
JAXCNN_EXPORT int jaxcnn_native_abi_version() { return 3; }

// The macro declares each handler with the linkage of C.
#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcnn_slide, jaxcnn::output_handler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<jaxcnn::Floats>()
                                  .Arg<jaxcnn::Floats>()
                                  .RemainingArgs()
                                  .Ret<jaxcnn::Floats>()
                                  .Attr<jaxcnn::Sizes>("strides")
                                  .Attr<jaxcnn::Sizes>("pad_low")
                                  .Attr<jaxcnn::Sizes>("dilation")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("operands")
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("alpha")
                                  .Attr<bool>("transposed")
                                  .Attr<bool>("tiles"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxcnn_kernel_gradient, jaxcnn::kernel_handler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<jaxcnn::Floats>()
                                  .Arg<jaxcnn::Floats>()
                                  .Ret<jaxcnn::Floats>()
                                  .Attr<jaxcnn::Sizes>("strides")
                                  .Attr<jaxcnn::Sizes>("pad_low")
                                  .Attr<jaxcnn::Sizes>("dilation")
                                  .Attr<int64_t>("groups"));
#pragma GCC visibility pop
