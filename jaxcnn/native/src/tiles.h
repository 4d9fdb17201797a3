// Dense convolutions of square windows at stride 1 by fewer products (Winograd, Toom-Cook): tiles of the source and the
// kernel are evaluated at points, multiplied there, and the products are interpolated to tiles of results.
#pragma once

#include "dense.h"

namespace jaxcnn {
namespace JAXCNN_ISA {

// The matrices of F(kM, kTaps) on one axis: results = at * ((g * kernel) . (bt * source)).
template <int kM, int kTaps>
struct TileMatrices {
  static constexpr int kPoints = kM + kTaps - 1;  // infinity among them
  float at[kM][kPoints] = {};
  float g[kPoints][kTaps] = {};
  float bt[kPoints][kPoints] = {};

  constexpr TileMatrices() {
    // The same points as the method `winograd` of XLA's operations.
    constexpr double six[5] = {0.0, 0.75, -0.75, 1.5, -1.5};
    constexpr double eight[7] = {0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5};
    double points[kPoints] = {};
    for (int i = 0; i + 1 < kPoints; ++i) points[i] = kPoints == 6 ? six[i % 5] : eight[i % 7];
    for (int i = 0; i <= kPoints - 1; ++i) {
      const bool infinite = i == kPoints - 1;
      // The product of (z - other) over the other points, the constant coefficient first.
      double product[kPoints] = {1.0};
      double scale = 1.0;
      int degree = 0;
      for (int j = 0; j + 1 < kPoints; ++j) {
        if (j == i) continue;
        for (int c = ++degree; c > 0; --c) product[c] = product[c - 1] - points[j] * product[c];
        product[0] = -points[j] * product[0];
        if (!infinite) scale *= points[i] - points[j];
      }
      double power = 1.0;
      for (int k = 0; k < (kM > kTaps ? kM : kTaps); ++k) {
        if (k < kM) at[k][i] = static_cast<float>(infinite ? k == kM - 1 : power);
        if (k < kTaps) g[i][k] = static_cast<float>(infinite ? k == kTaps - 1 : power / scale);
        power *= points[i];
      }
      for (int c = 0; c < kPoints; ++c) bt[i][c] = static_cast<float>(product[c]);
    }
  }
};

// The kernel at the points, [point][panel][channel][column of the panel].
template <int kM, int kTaps>
void evaluate_kernel(const Slide& slide, const float* kernel, float* to, TaskRunner& runner) {
  constexpr TileMatrices<kM, kTaps> matrices;
  constexpr int kPoints = matrices.kPoints;
  const int64_t channels = slide.source_channels, columns = slide.result_channels;
  const int64_t vectors = ceil_div(columns, kLanes), blocks = ceil_div(channels, kLanes);
  const int64_t filled = vectors * kLanes;
  parallel(runner, blocks * vectors, [&](int64_t task) {
    const int64_t vector = task % vectors, first = task / vectors * kLanes;
    const int64_t count = least(kLanes, channels - first), lanes = least(kLanes, columns - vector * kLanes);
    // The panel of this vector, and its width.
    const int64_t panel = vector / kVectors, width = least(kColumns, filled - panel * kColumns);
    float* const place = to + panel * kColumns * channels + first * width + vector % kVectors * kLanes;
    Vec taps[kTaps][kTaps][kLanes];
    for (int h = 0; h < kTaps; ++h) {
      for (int w = 0; w < kTaps; ++w) {
        const int64_t tap = slide.kernel_tap(0, h, w);
        if (slide.transposed) {
          const float* from = kernel + (tap * columns + vector * kLanes) * channels + first;
          for (int n = 0; n < kLanes; ++n) taps[h][w][n] = n < lanes ? load_some(from + n * channels, count) : Vec{};
          transpose(taps[h][w]);
        } else {
          const float* from = kernel + (tap * channels + first) * columns + vector * kLanes;
          for (int64_t c = 0; c < count; ++c) taps[h][w][c] = load_some(from + c * columns, lanes);
        }
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      Vec half[kPoints][kTaps];
#pragma GCC unroll 8
      for (int i = 0; i < kPoints; ++i)
#pragma GCC unroll 8
        for (int w = 0; w < kTaps; ++w) {
          Vec sum = {};
#pragma GCC unroll 8
          for (int h = 0; h < kTaps; ++h)
            if (matrices.g[i][h] != 0.0f) sum += matrices.g[i][h] * taps[h][w][c];
          half[i][w] = sum;
        }
#pragma GCC unroll 8
      for (int i = 0; i < kPoints; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < kPoints; ++j) {
          Vec sum = {};
#pragma GCC unroll 8
          for (int w = 0; w < kTaps; ++w)
            if (matrices.g[j][w] != 0.0f) sum += matrices.g[j][w] * half[i][w];
          store(place + (i * kPoints + j) * channels * filled + c * width, sum);
        }
    }
  });
}

// One vector of channels of a source tile at the points; `from` points to kPoints x kPoints vectors.
template <int kM, int kTaps>
JAXCNN_INLINE void evaluate_source(const float* const* pixels, float* to, int64_t point_floats) {
  constexpr TileMatrices<kM, kTaps> matrices;
  constexpr int kPoints = matrices.kPoints;
  Vec half[kPoints][kPoints];
#pragma GCC unroll 8
  for (int w = 0; w < kPoints; ++w) {
    Vec column[kPoints];
#pragma GCC unroll 8
    for (int h = 0; h < kPoints; ++h) column[h] = load(pixels[h * kPoints + w]);
#pragma GCC unroll 8
    for (int i = 0; i < kPoints; ++i) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int h = 0; h < kPoints; ++h)
        if (matrices.bt[i][h] != 0.0f) sum += matrices.bt[i][h] * column[h];
      half[i][w] = sum;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPoints; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kPoints; ++j) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int w = 0; w < kPoints; ++w)
        if (matrices.bt[j][w] != 0.0f) sum += matrices.bt[j][w] * half[i][w];
      store(to + (i * kPoints + j) * point_floats, sum);
    }
}

// One vector of columns of a tile of results, from the products at the points.
template <int kM, int kTaps>
JAXCNN_INLINE void interpolate(const float* from, int64_t point_floats, Vec (&results)[kM][kM]) {
  constexpr TileMatrices<kM, kTaps> matrices;
  constexpr int kPoints = matrices.kPoints;
  Vec half[kM][kPoints];
#pragma GCC unroll 8
  for (int j = 0; j < kPoints; ++j) {
    Vec column[kPoints];
#pragma GCC unroll 8
    for (int i = 0; i < kPoints; ++i) column[i] = load(from + (i * kPoints + j) * point_floats);
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int i = 0; i < kPoints; ++i)
        if (matrices.at[m][i] != 0.0f) sum += matrices.at[m][i] * column[i];
      half[m][j] = sum;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kM; ++n) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int j = 0; j < kPoints; ++j)
        if (matrices.at[n][j] != 0.0f) sum += matrices.at[n][j] * half[m][j];
      results[m][n] = sum;
    }
}

constexpr int64_t kPitch = kDepth + 16;      // floats from one tile of the source to the next, at a point
constexpr int64_t kTileFloats = 200 << 10;  // floats of sources and products at the points in a block of tiles
constexpr int64_t kMostBlockTiles = 4 * kRows;

template <int kM, int kTaps>
void slide_tiles_of(const Slide& slide, const float* source, const float* kernel, float* result,
                    const Epilogue& epilogue, TaskRunner& runner) {
  constexpr int kPoints = kM + kTaps - 1, kSquare = kPoints * kPoints;
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const int64_t channels = slide.source_channels, columns = slide.result_channels;
  const int64_t filled = ceil_div(columns, kLanes) * kLanes, panels = ceil_div(columns, kColumns);
  float* const points = Scratch::floats(3, kSquare * channels * filled);
  evaluate_kernel<kM, kTaps>(slide, kernel, points, runner);

  const int64_t rows_of_tiles = ceil_div(ha->results, kM), columns_of_tiles = ceil_div(wa->results, kM);
  const int64_t tiles = slide.batch * da->results * rows_of_tiles * columns_of_tiles;
  const int64_t chunks = ceil_div(channels, kDepth), chunk = ceil_div(ceil_div(channels, chunks), kLanes) * kLanes;
  int64_t block_tiles = kTileFloats / (kSquare * (chunks * kPitch + filled)) / kRows * kRows;
  block_tiles = most(kRows, least(block_tiles, kMostBlockTiles));
  const int64_t threads = runner.threads();
  while (threads > 1 && block_tiles > kRows && ceil_div(tiles, block_tiles) < 2 * threads) block_tiles -= kRows;
  const bool plain = is_empty(epilogue);
  const int64_t pixel = slide.source_pixel();

  parallel(runner, ceil_div(tiles, block_tiles), [&](int64_t task) {
    const int64_t first = task * block_tiles, count = least(block_tiles, tiles - first);
    const int64_t source_floats = chunks * block_tiles * kPitch, product_floats = block_tiles * filled;
    float* const sources = Scratch::floats(0, kSquare * source_floats);
    float* const products = Scratch::floats(1, kSquare * product_floats);
    float* const zeros = Scratch::floats(2, channels + kLanes);
    clear(zeros, channels + kLanes);
    for (int64_t t = 0; t < count; ++t) {
      int64_t rest = first + t;
      const int64_t w = rest % columns_of_tiles * kM + wa->source_first;
      rest /= columns_of_tiles;
      const int64_t h = rest % rows_of_tiles * kM + ha->source_first;
      rest /= rows_of_tiles;
      const int64_t d = rest % da->results * da->source_stride + da->source_first, image = rest / da->results;
      const float* places[kSquare];
      for (int i = 0; i < kSquare; ++i) {
        const int64_t sh = h + i / kPoints, sw = w + i % kPoints;
        const bool inside = d >= 0 && d < da->source_size && sh >= 0 && sh < ha->source_size && sw >= 0 &&
                            sw < wa->source_size;
        const int64_t line = (image * da->source_size + d) * ha->source_size + sh;
        places[i] = inside ? source + (line * wa->source_size + sw) * pixel : zeros;
      }
      for (int64_t c = 0; c < channels; c += kLanes) {
        const float* pixels[kSquare];
        float copies[kSquare][kLanes];
        if (c + kLanes <= channels) {
          for (int i = 0; i < kSquare; ++i) pixels[i] = places[i] + c;
        } else {
          for (int i = 0; i < kSquare; ++i) {
            store(copies[i], load_some(places[i] + c, channels - c));
            pixels[i] = copies[i];
          }
        }
        float* const to = sources + ((c / chunk) * block_tiles + t) * kPitch + c % chunk;
        evaluate_source<kM, kTaps>(pixels, to, source_floats);
      }
    }
    for (int64_t point = 0; point < kSquare; ++point) {
      const float* const weights = points + point * channels * filled;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t width = least(kColumns, filled - panel * kColumns), vectors = width / kLanes;
        for (int64_t k = 0; k < chunks; ++k) {
          const int64_t depth = least(chunk, channels - k * chunk);
          const float* const with = weights + panel * kColumns * channels + k * chunk * width;
          for (int64_t t = 0; t < count; t += kRows) {
            const int64_t rows = least(kRows, count - t);
            float* to[kRows];
            const float* from[kRows];
            for (int64_t r = 0; r < rows; ++r) {
              from[r] = sources + point * source_floats + (k * block_tiles + t + r) * kPitch;
              to[r] = products + point * product_floats + (t + r) * filled + panel * kColumns;
            }
            const Segment channels_of_chunk = {0, depth};
            const Product in = {from, &channels_of_chunk, 1, with};
            run_tile<PixelTile>(rows, vectors, in, to, width, k == 0, nullptr);
          }
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      int64_t rest = first + t;
      const int64_t w = rest % columns_of_tiles * kM;
      rest /= columns_of_tiles;
      const int64_t h = rest % rows_of_tiles * kM;
      rest /= rows_of_tiles;
      const int64_t d = rest % da->results, image = rest / da->results;
      const int64_t line = (image * da->result_size + da->result_first + d * da->result_step) * ha->result_size;
      const int64_t height = least(kM, ha->results - h), width = least(kM, wa->results - w);
      for (int64_t c = 0; c < columns; c += kLanes) {
        Vec values[kM][kM];
        interpolate<kM, kTaps>(products + t * filled + c, product_floats, values);
        const int64_t lanes = least(kLanes, columns - c);
        float* places[kM * kM];
        int64_t number = 0;
        for (int64_t m = 0; m < height; ++m) {
          for (int64_t n = 0; n < width; ++n) {
            float* const to = result + ((line + h + m) * wa->result_size + w + n) * columns + c;
            store_some(to, values[m][n], lanes);
            places[number++] = to;
          }
        }
        if (!plain) finish(places, number, lanes, c, result, epilogue);
      }
    }
  });
}

inline bool fits_tiles(const Slide& slide) {
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const bool steps = ha->source_stride == 1 && wa->source_stride == 1 && ha->source_step == 1 &&
                     wa->source_step == 1 && ha->result_step == 1 && wa->result_step == 1;
  return slide.groups == 1 && da->taps == 1 && steps && ha->taps == wa->taps && (ha->taps == 3 || ha->taps == 5);
}

inline void slide_tiles(const Slide& slide, const float* source, const float* kernel, float* result,
                        const Epilogue& epilogue, TaskRunner& runner) {
  if (slide.axis[1].taps == 3) {
    slide_tiles_of<4, 3>(slide, source, kernel, result, epilogue, runner);
  } else {
    slide_tiles_of<4, 5>(slide, source, kernel, result, epilogue, runner);
  }
}

}  // namespace JAXCNN_ISA
}  // namespace jaxcnn
