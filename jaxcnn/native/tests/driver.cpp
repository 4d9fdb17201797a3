// Runs the kernels of every instruction set that this processor has over random and extreme problems, compares them with
// plain loops, and checks that results do not depend on the number of threads. Built with sanitizers by `make sanitize`.
//
// Usage: driver [random problems] [seed]
#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace jaxcnn {

#if JAXCNN_HAS_AVX512
namespace avx512 {
extern const KernelTable kTable;
}
#endif
#if JAXCNN_HAS_AVX2
namespace avx2 {
extern const KernelTable kTable;
}
#endif
namespace baseline {
extern const KernelTable kTable;
}

namespace {

constexpr int kMaxThreads = 8;
constexpr int64_t kMaxProducts = 400000;

// Largest error of a result, as a share of the sum of its terms' sizes.
constexpr double kTolerance = 4e-6;
constexpr double kTilesTolerance = 2e-5;

using Generator = std::mt19937_64;

int64_t between(Generator& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}
bool one_in(Generator& random, int64_t count) { return between(random, 1, count) == 1; }
template <typename Value>
Value any_of(Generator& random, std::initializer_list<Value> values) {
  return values.begin()[between(random, 0, static_cast<int64_t>(values.size()) - 1)];
}

// Memory of exactly the length that is asked for, so that one element beyond it is an error. XLA aligns arrays to 16
// bytes or more; these are sometimes aligned to no more than that.
class Floats {
 public:
  explicit Floats(int64_t count) : count_(count), memory_(new float[count]) {}
  static Floats random(int64_t count, Generator& generator) {
    Floats floats(count);
    std::uniform_real_distribution<float> values(-1.0f, 1.0f);
    for (int64_t i = 0; i < count; ++i) floats[i] = values(generator);
    return floats;
  }
  void fill(float value) { std::fill_n(memory_.get(), count_, value); }
  float& operator[](int64_t i) { return memory_[i]; }
  const float& operator[](int64_t i) const { return memory_[i]; }
  float* data() { return memory_.get(); }
  const float* data() const { return memory_.get(); }
  int64_t count() const { return count_; }

 private:
  int64_t count_;
  std::unique_ptr<float[]> memory_;
};

class ThreadRunner final : public TaskRunner {
 public:
  explicit ThreadRunner(int64_t threads) : threads_(threads) {}

  void run(int64_t tasks, void (*body)(void*, int64_t), void* context) override {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      for (int64_t index; (index = next.fetch_add(1)) < tasks;) body(context, index);
    };
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < std::min(threads_, tasks); ++i) helpers.emplace_back(work);
    work();
    for (std::thread& helper : helpers) helper.join();
  }

  int64_t threads() const override { return threads_; }

 private:
  const int64_t threads_;
};

int64_t product(const int64_t (&sizes)[3]) { return sizes[0] * sizes[1] * sizes[2]; }
int64_t x_count(const ConvProblem& p) { return p.batch * product(p.in) * p.in_channels; }
int64_t y_count(const ConvProblem& p) { return p.batch * product(p.out) * p.out_channels; }
int64_t kernel_count(const ConvProblem& p) { return product(p.window) * (p.in_channels / p.groups) * p.out_channels; }
int64_t products(const ConvProblem& p) {
  return p.batch * product(p.out) * product(p.window) * (p.in_channels / p.groups) * p.out_channels;
}

// Calls body(index in x, index in kernel, index in y) for each product of the convolution whose pixel exists.
template <typename Body>
void for_each_product(const ConvProblem& p, const Body& body) {
  const int64_t group_in = p.in_channels / p.groups, group_out = p.out_channels / p.groups;
  int64_t o[3], t[3], i[3];
  for (int64_t n = 0; n < p.batch; ++n)
    for (o[0] = 0; o[0] < p.out[0]; ++o[0])
      for (o[1] = 0; o[1] < p.out[1]; ++o[1])
        for (o[2] = 0; o[2] < p.out[2]; ++o[2])
          for (t[0] = 0; t[0] < p.window[0]; ++t[0])
            for (t[1] = 0; t[1] < p.window[1]; ++t[1])
              for (t[2] = 0; t[2] < p.window[2]; ++t[2]) {
                bool inside = true;
                for (int a = 0; a < 3; ++a) {
                  i[a] = o[a] * p.stride[a] - p.pad_low[a] + t[a] * p.dilation[a];
                  inside = inside && i[a] >= 0 && i[a] < p.in[a];
                }
                if (!inside) continue;
                const int64_t x = (((n * p.in[0] + i[0]) * p.in[1] + i[1]) * p.in[2] + i[2]) * p.in_channels;
                const int64_t y = (((n * p.out[0] + o[0]) * p.out[1] + o[1]) * p.out[2] + o[2]) * p.out_channels;
                const int64_t tap = ((t[0] * p.window[1] + t[1]) * p.window[2] + t[2]) * group_in * p.out_channels;
                for (int64_t q = 0; q < group_in; ++q)
                  for (int64_t c = 0; c < p.out_channels; ++c)
                    body(x + c / group_out * group_in + q, tap + q * p.out_channels + c, y + c);
              }
}

// The sums that a result should have, and the sums of the terms' sizes.
struct Sums {
  explicit Sums(int64_t count) : value(count, 0.0), size(count, 0.0) {}
  void add(int64_t index, double term) {
    value[index] += term;
    size[index] += std::abs(term);
  }
  std::vector<double> value, size;
};

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double activated(double x, Activation activation, double alpha) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kRelu6:
      return std::clamp(x, 0.0, 6.0);
    case Activation::kLeakyRelu:
      return x >= 0 ? x : alpha * x;
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kHardSwish:
      return x * std::clamp(x + 3.0, 0.0, 6.0) / 6.0;
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kSigmoid:
      return sigmoid(x);
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kHardSigmoid:
      return std::clamp(x + 3.0, 0.0, 6.0) / 6.0;
  }
  return x;
}
constexpr int64_t kActivations = static_cast<int64_t>(Activation::kHardSigmoid) + 1;

// The arrays of an epilogue for `count` results of `channels` channels, each there or not.
class Extras {
 public:
  Extras(Generator& random, int64_t channels, int64_t count)
      : channels_(channels),
        scale_(Floats::random(channels, random)),
        bias_(Floats::random(channels, random)),
        residual_(Floats::random(count, random)) {
    if (one_in(random, 2)) return;
    if (one_in(random, 2)) epilogue.scale = scale_.data();
    if (one_in(random, 2)) epilogue.bias = bias_.data();
    if (one_in(random, 2)) epilogue.residual = residual_.data();
    epilogue.activation = static_cast<Activation>(between(random, 0, kActivations - 1));
    epilogue.alpha = 0.125f;
  }

  // Applies the epilogue to the sums. No activation is steeper than 1.2.
  void apply(Sums& sums) const {
    for (size_t i = 0; i < sums.value.size(); ++i) {
      const int64_t channel = static_cast<int64_t>(i) % channels_;
      double value = sums.value[i], size = sums.size[i];
      if (epilogue.scale) value *= scale_[channel], size *= std::abs(scale_[channel]);
      if (epilogue.bias) value += bias_[channel], size += std::abs(bias_[channel]);
      if (epilogue.residual) value += residual_[i], size += std::abs(residual_[i]);
      sums.value[i] = activated(value, epilogue.activation, epilogue.alpha);
      sums.size[i] = 1.2 * size + (epilogue.activation == Activation::kNone ? 0.0 : 1.0);
    }
  }

  Epilogue epilogue;

 private:
  int64_t channels_;
  Floats scale_, bias_, residual_;
};

// What is computed at the moment, for the report of a sanitizer.
std::string current;

void report_current() { std::fprintf(stderr, "In %s\n", current.c_str()); }

}  // namespace
}  // namespace jaxcnn

// Both sanitizers end the program by a signal, whose handler reports the problem.
#define JAXCNN_SANITIZER_OPTIONS extern "C" __attribute__((visibility("default"))) const char*
JAXCNN_SANITIZER_OPTIONS __asan_default_options() { return "abort_on_error=1"; }
JAXCNN_SANITIZER_OPTIONS __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace jaxcnn {
namespace {

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  report_current();
  std::exit(1);
}

std::string text(const ConvProblem& p) {
  const auto sizes = [](const int64_t (&values)[3]) {
    return std::to_string(values[0]) + "x" + std::to_string(values[1]) + "x" + std::to_string(values[2]);
  };
  return "batch " + std::to_string(p.batch) + ", in " + sizes(p.in) + ", out " + sizes(p.out) + ", window " +
         sizes(p.window) + ", stride " + sizes(p.stride) + ", low padding " + sizes(p.pad_low) + ", dilation " +
         sizes(p.dilation) + ", " + std::to_string(p.groups) + " groups, channels " + std::to_string(p.in_channels) +
         " to " + std::to_string(p.out_channels);
}

void compare(const Floats& result, const Sums& sums) {
  for (int64_t i = 0; i < result.count(); ++i) {
    const double wanted = sums.value[i];
    const bool same = std::isnan(wanted) ? std::isnan(result[i])
                                         : std::abs(result[i] - wanted) <= kTolerance * sums.size[i] + 1e-30;
    if (!same) {
      fail("element " + std::to_string(i) + " is " + std::to_string(result[i]) + ", not " + std::to_string(wanted));
    }
  }
}

// Compares results of tiles of fewer products, whose errors go with the largest sum around, and where NaN spreads.
void compare_tiles(const Floats& result, const Sums& sums) {
  double largest = 0;
  for (int64_t i = 0; i < result.count(); ++i) {
    if (std::isnan(sums.value[i])) return;
    largest = std::max(largest, std::abs(sums.size[i]));
  }
  for (int64_t i = 0; i < result.count(); ++i) {
    const double wanted = sums.value[i];
    if (!(std::abs(result[i] - wanted) <= kTilesTolerance * largest)) {
      fail("element " + std::to_string(i) + " is " + std::to_string(result[i]) + ", not " + std::to_string(wanted));
    }
  }
}

// Whether there are tiles for a problem.
bool has_tiles(const ConvProblem& p) {
  bool fits = p.window[0] == 1 && (p.window[1] == 3 || p.window[1] == 5) && p.window[1] == p.window[2];
  for (int a = 1; a < 3; ++a) fits = fits && p.stride[a] == 1 && p.dilation[a] == 1;
  return fits;
}

// Runs `call` with one thread and with several, for each instruction set, and compares the results.
template <typename Call>
void check(const ConvProblem& p, const char* role, const std::vector<const KernelTable*>& tables, int64_t count,
           int64_t threads, const Sums& sums, const Call& call, bool tiles = false) {
  if (count == 0) return;  // XLA's handlers return before
  for (const KernelTable* table : tables) {
    Floats one(count), several(count);
    for (Floats* result : {&one, &several}) {
      ThreadRunner runner(result == &one ? 1 : threads);
      current = std::string(role) + ", " + table->name + ", " + std::to_string(runner.threads()) + " threads: " + text(p);
      // What is left unwritten is found by the comparison.
      result->fill(1e30f);
      call(*table, result->data(), runner);
    }
    if (tiles) {
      compare_tiles(one, sums);
    } else {
      compare(one, sums);
    }
    if (std::memcmp(one.data(), several.data(), sizeof(float) * count) != 0) {
      fail("the result depends on the number of threads");
    }
  }
}

void check_all(const ConvProblem& p, const std::vector<const KernelTable*>& tables, Generator& random) {
  Floats x = Floats::random(x_count(p), random), y = Floats::random(y_count(p), random);
  const Floats kernel = Floats::random(kernel_count(p), random), cotangent = Floats::random(y_count(p), random);
  // NaN in the first operand of a role reaches exactly the results that see it. In the second it may also meet padding.
  if (one_in(random, 8)) {
    for (Floats* image : {&x, &y}) {
      if (image->count() > 0) (*image)[between(random, 0, image->count() - 1)] = std::nanf("");
    }
  }
  const int64_t threads = between(random, 2, kMaxThreads);
  Extras to_y(random, p.out_channels, y.count()), to_x(random, p.in_channels, x.count());

  Sums output(y.count()), input(x.count()), gradient(kernel.count());
  for_each_product(p, [&](int64_t in, int64_t tap, int64_t out) {
    output.add(out, static_cast<double>(x[in]) * kernel[tap]);
    input.add(in, static_cast<double>(y[out]) * kernel[tap]);
    gradient.add(tap, static_cast<double>(x[in]) * cotangent[out]);
  });
  to_y.apply(output);
  to_x.apply(input);

  for (const bool tiles : {false, true}) {
    if (tiles && !has_tiles(p)) continue;
    check(
        p, tiles ? "output by tiles" : "output", tables, y.count(), threads, output,
        [&](const KernelTable& table, float* result, TaskRunner& runner) {
          table.output(p, x.data(), kernel.data(), result, to_y.epilogue, tiles, runner);
        },
        tiles);
    check(
        p, tiles ? "input by tiles" : "input", tables, x.count(), threads, input,
        [&](const KernelTable& table, float* result, TaskRunner& runner) {
          table.input(p, y.data(), kernel.data(), result, to_x.epilogue, tiles, runner);
        },
        tiles);
  }
  check(p, "kernel", tables, kernel.count(), threads, gradient,
        [&](const KernelTable& table, float* result, TaskRunner& runner) {
          table.kernel(p, x.data(), cotangent.data(), result, runner);
        });
}

// The number of outputs that a padded image has, as JAX counts them; 0 where the window does not fit.
int64_t outputs(int64_t in, int64_t padding, int64_t window, int64_t stride, int64_t dilation) {
  const int64_t reach = window > 0 ? (window - 1) * dilation + 1 : 0;
  const int64_t room = in + padding - reach;
  return room < 0 ? 0 : room / stride + 1;
}

// A problem of random sizes, or one with more products than the comparison has time for.
ConvProblem drawn(Generator& random) {
  ConvProblem p = {};
  p.batch = any_of<int64_t>(random, {1, 1, 1, 2, 3, 5});
  const int64_t rank = any_of<int64_t>(random, {1, 2, 2, 2, 3});
  for (int a = 0; a < 3; ++a) {
    p.in[a] = p.out[a] = p.window[a] = p.stride[a] = p.dilation[a] = 1;
    if (a < 3 - rank) continue;
    p.in[a] = one_in(random, 12) ? between(random, 0, 1) : between(random, 1, rank == 1 ? 200 : rank == 2 ? 40 : 12);
    p.window[a] = any_of<int64_t>(random, {1, 1, 2, 3, 3, 3, 5, 7, 11, between(random, 1, 20)});
    if (one_in(random, 12)) p.window[a] = std::max<int64_t>(1, p.in[a]);  // as large as the image
    p.stride[a] = any_of<int64_t>(random, {1, 1, 1, 2, 3, p.window[a], p.window[a] + 2});
    p.dilation[a] = any_of<int64_t>(random, {1, 1, 1, 2, 3});
    const int64_t reach = (p.window[a] - 1) * p.dilation[a] + 1;
    int64_t high = reach / 2;
    p.pad_low[a] = (reach - 1) / 2;
    if (one_in(random, 4)) p.pad_low[a] = between(random, -3, reach + 3), high = between(random, -3, reach + 3);
    if (one_in(random, 12)) p.pad_low[a] = high = reach + between(random, 1, 40);
    p.out[a] = outputs(p.in[a], p.pad_low[a] + high, p.window[a], p.stride[a], p.dilation[a]);
  }
  const int64_t width_in = any_of<int64_t>(random, {1, 1, 2, 3, 4, 7, 8, 13, 16, 31, 37, between(random, 1, 80)});
  const int64_t width_out = any_of<int64_t>(random, {1, 1, 2, 3, 4, 5, 8, 11, 16, 17, 43, between(random, 1, 80)});
  p.groups = any_of<int64_t>(random, {1, 1, 1, 2, 3, 8, 16, 23, 48, between(random, 1, 70)});
  if (one_in(random, 4)) p.groups = 1;
  p.in_channels = p.groups * (one_in(random, 40) ? 0 : width_in);
  p.out_channels = p.groups * width_out;
  return p;
}

// A 2-D problem of the same sizes on both axes.
ConvProblem square(int64_t in, int64_t window, int64_t stride, int64_t padding, int64_t dilation, int64_t groups,
                   int64_t in_channels, int64_t out_channels, int64_t batch = 1) {
  const int64_t out = outputs(in, 2 * padding, window, stride, dilation);
  return {batch,         {1, in, in},        {1, out, out}, {1, window, window}, {1, stride, stride},
          {0, padding, padding}, {1, dilation, dilation}, groups,        in_channels,         out_channels};
}

std::vector<ConvProblem> extremes() {
  std::vector<ConvProblem> problems = {
      square(0, 3, 1, 3, 1, 1, 4, 8),      // no pixel: padding alone
      square(1, 1, 1, 0, 1, 1, 1, 1),      // one of everything
      square(1, 3, 1, 1, 1, 16, 16, 16),   // one pixel, most taps outside
      square(5, 3, 1, 1, 1, 1, 3, 8, 0),   // no image
      square(5, 3, 1, 1, 1, 1, 0, 8),      // no channel to sum over
      square(5, 3, 1, 1, 1, 1, 3, 0),      // no channel to compute
      square(5, 0, 1, 0, 1, 1, 3, 4),      // no tap
      square(19, 19, 1, 0, 1, 1, 5, 7),    // windows as large as the image
      square(19, 19, 1, 9, 1, 29, 29, 29), // and padded
      square(6, 3, 1, 20, 1, 1, 3, 5),     // padding beyond the window
      square(6, 3, 1, 20, 1, 17, 17, 34),
      square(17, 2, 7, 0, 1, 1, 3, 19),    // strides beyond the window
      square(17, 2, 7, 3, 1, 13, 13, 13),
      square(9, 3, 1, 40, 20, 1, 2, 3),    // one tap at a time inside
      square(12, 3, 2, 4, 3, 1, 4, 4),     // stride and dilation without a common divisor
      square(12, 3, 4, 4, 2, 8, 16, 16),   // and with one
      square(14, 3, 1, 1, 1, 1, 97, 101),  // prime channel counts
      square(14, 3, 1, 1, 1, 97, 97, 97),
      square(10, 3, 1, 1, 1, 7, 49, 77),
      square(28, 1, 1, 0, 1, 1, 67, 61, 2),
      square(33, 3, 1, 1, 1, 1, 16, 32),   // whole tiles and one more row
      square(7, 3, 1, 1, 1, 1, 300, 40),
      square(7, 3, 1, 1, 1, 1, 40, 300),
      square(8, 5, 1, 2, 1, 3, 3, 12),
      square(7, 1, 1, 0, 1, 1, 601, 307),  // several blocks of channels
      square(64, 3, 1, 1, 1, 1, 16, 16),   // and of rows
      square(70, 3, 2, 1, 1, 70, 70, 140),
      square(9, 3, 1, 1, 1, 1, 5, 7),      // tiles of fewer products
      square(21, 3, 1, 1, 1, 1, 201, 33, 2),
      square(13, 5, 1, 2, 1, 1, 18, 50),
      square(8, 5, 1, 4, 1, 1, 16, 16, 3),
      square(3, 3, 1, 5, 1, 1, 3, 3),
  };
  // Axes of their own: rows, columns and depth.
  problems.push_back({2, {1, 1, 301}, {1, 1, 301}, {1, 1, 65}, {1, 1, 1}, {0, 0, 32}, {1, 1, 1}, 1, 3, 5});
  problems.push_back({1, {1, 40, 40}, {1, 40, 40}, {1, 11, 1}, {1, 1, 1}, {0, 5, 0}, {1, 1, 1}, 1, 19, 16});
  problems.push_back({1, {1, 40, 40}, {1, 40, 40}, {1, 1, 11}, {1, 1, 1}, {0, 0, 5}, {1, 1, 1}, 1, 16, 19});
  problems.push_back({1, {9, 8, 7}, {9, 8, 7}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, 1, 5, 7});
  problems.push_back({2, {9, 1, 7}, {5, 1, 3}, {3, 1, 2}, {2, 3, 3}, {1, 0, 1}, {1, 2, 2}, 11, 11, 22});
  // Outputs beyond all padding, and before it.
  problems.push_back({1, {1, 6, 6}, {1, 30, 30}, {1, 3, 3}, {1, 2, 2}, {0, -2, 1}, {1, 1, 1}, 1, 4, 6});
  problems.push_back({1, {1, 6, 6}, {1, 9, 30}, {1, 3, 3}, {1, 1, 2}, {0, 50, -9}, {1, 1, 2}, 6, 6, 6});
  return problems;
}

std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> result = {&baseline::kTable};
#if JAXCNN_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) result.push_back(&avx2::kTable);
#endif
#if JAXCNN_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    result.push_back(&avx512::kTable);
#endif
  return result;
}

}  // namespace
}  // namespace jaxcnn

int main(int count, char** arguments) {
  using namespace jaxcnn;
  const int64_t wanted = count > 1 ? std::atoll(arguments[1]) : 500;
  Generator random(count > 2 ? std::atoll(arguments[2]) : 1);
  std::signal(SIGABRT, [](int) { report_current(); });
  const auto sets = tables();
  std::vector<ConvProblem> problems = extremes();
  const size_t chosen = problems.size();
  while (problems.size() < chosen + wanted) {
    const ConvProblem p = drawn(random);
    if (products(p) <= kMaxProducts && x_count(p) <= kMaxProducts) problems.push_back(p);
  }
  for (const ConvProblem& p : problems) check_all(p, sets, random);
  std::printf("%zu problems, in three roles, on", problems.size());
  for (const KernelTable* table : sets) std::printf(" %s", table->name);
  std::printf(": all equal to plain loops\n");
}
