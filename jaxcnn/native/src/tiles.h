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
    // These are the points of the Python module `winograd` too.
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

template <int kM, int kTaps>
constexpr TileMatrices<kM, kTaps> kMatrices;

// Computes matrix * values * transpose of matrix. `read(h, w)` returns a vector of values, and `write(i, j, sum)` takes
// a vector of the result.
template <int kOut, int kIn, typename Read, typename Write>
JAXCNN_INLINE void transform(const float (&matrix)[kOut][kIn], const Read& read, const Write& write) {
  Vec half[kOut][kIn];
#pragma GCC unroll 8
  for (int w = 0; w < kIn; ++w) {
    Vec column[kIn];
#pragma GCC unroll 8
    for (int h = 0; h < kIn; ++h) column[h] = read(h, w);
#pragma GCC unroll 8
    for (int i = 0; i < kOut; ++i) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int h = 0; h < kIn; ++h)
        if (matrix[i][h] != 0.0f) sum += matrix[i][h] * column[h];
      half[i][w] = sum;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kOut; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kOut; ++j) {
      Vec sum = {};
#pragma GCC unroll 8
      for (int w = 0; w < kIn; ++w)
        if (matrix[j][w] != 0.0f) sum += matrix[j][w] * half[i][w];
      write(i, j, sum);
    }
}

// Evaluates the kernel at the points: [group][point][panel][channel][column of the panel].
template <int kM, int kTaps>
void evaluate_kernel(const Slide& slide, const float* kernel, float* to, TaskRunner& runner) {
  constexpr int kPoints = kM + kTaps - 1;
  const int64_t channels = slide.source_channels, columns = slide.result_channels;
  const int64_t vectors = ceil_div(columns, kLanes), blocks = ceil_div(channels, kLanes);
  const int64_t filled = vectors * kLanes;
  parallel(runner, slide.groups * blocks * vectors, [&](int64_t task) {
    const int64_t vector = task % vectors, first = task / vectors % blocks * kLanes, group = task / vectors / blocks;
    const int64_t count = least(kLanes, channels - first), lanes = least(kLanes, columns - vector * kLanes);
    // The panel of this vector, and its width.
    const int64_t panel = vector / kVectors, width = least(kColumns, filled - panel * kColumns);
    float* const place = to + group * kPoints * kPoints * channels * filled + panel * kColumns * channels +
                         first * width + vector % kVectors * kLanes;
    Vec taps[kTaps][kTaps][kLanes];
    for (int h = 0; h < kTaps; ++h) {
      for (int w = 0; w < kTaps; ++w) {
        const int64_t tap = slide.kernel_tap(0, h, w);
        if (slide.transposed) {
          const int64_t pitch = slide.source_pixel();
          const float* from = kernel + (tap * columns + vector * kLanes) * pitch + group * channels + first;
          for (int n = 0; n < kLanes; ++n) taps[h][w][n] = n < lanes ? load_some(from + n * pitch, count) : Vec{};
          transpose(taps[h][w]);
        } else {
          const int64_t pitch = slide.result_pixel();
          const float* from = kernel + (tap * channels + first) * pitch + group * columns + vector * kLanes;
          for (int64_t c = 0; c < count; ++c) taps[h][w][c] = load_some(from + c * pitch, lanes);
        }
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      transform(
          kMatrices<kM, kTaps>.g, [&](int h, int w) { return taps[h][w][c]; },
          [&](int i, int j, Vec sum) { store(place + (i * kPoints + j) * channels * filled + c * width, sum); });
    }
  });
}

constexpr int64_t kPitch = kDepth + 16;      // floats from one tile of the source to the next, at a point
constexpr int64_t kTileFloats = 200 << 10;  // most floats of sources and products at the points in a block of tiles
constexpr int64_t kMostBlockTiles = 4 * kRows;  // most tiles of a block

template <int kM, int kTaps>
void slide_tiles_of(const Slide& slide, const float* source, const float* kernel, float* result,
                    const Epilogue& epilogue, TaskRunner& runner) {
  constexpr int kPoints = kM + kTaps - 1, kSquare = kPoints * kPoints;
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const int64_t channels = slide.source_channels, columns = slide.result_channels;
  const int64_t filled = ceil_div(columns, kLanes) * kLanes, panels = ceil_div(columns, kColumns);
  float* const points = Scratch::floats(3, slide.groups * kSquare * channels * filled);
  evaluate_kernel<kM, kTaps>(slide, kernel, points, runner);

  const int64_t rows_of_tiles = ceil_div(ha->results, kM), columns_of_tiles = ceil_div(wa->results, kM);
  const int64_t tiles = slide.batch * da->results * rows_of_tiles * columns_of_tiles;
  // The first result of a tile.
  struct Tile {
    int64_t image, d, h, w;
  };
  const auto tile_at = [&](int64_t number) {
    const int64_t line = number / columns_of_tiles, plane = line / rows_of_tiles;
    return Tile{plane / da->results, plane % da->results, line % rows_of_tiles * kM, number % columns_of_tiles * kM};
  };
  const int64_t chunks = ceil_div(channels, kDepth), chunk = ceil_div(ceil_div(channels, chunks), kLanes) * kLanes;
  int64_t block_tiles = kTileFloats / (kSquare * (chunks * kPitch + filled)) / kRows * kRows;
  block_tiles = most(kRows, least(block_tiles, kMostBlockTiles));
  const int64_t threads = runner.threads();
  while (threads > 1 && block_tiles > kRows && ceil_div(tiles, block_tiles) * slide.groups < 2 * threads) {
    block_tiles -= kRows;
  }
  const bool plain = is_empty(epilogue);
  const int64_t pixel = slide.source_pixel();

  parallel(runner, ceil_div(tiles, block_tiles) * slide.groups, [&](int64_t task) {
    const int64_t group = task % slide.groups, first = task / slide.groups * block_tiles;
    const int64_t count = least(block_tiles, tiles - first);
    const int64_t source_floats = chunks * block_tiles * kPitch, product_floats = block_tiles * filled;
    float* const sources = Scratch::floats(0, kSquare * source_floats);
    float* const products = Scratch::floats(1, kSquare * product_floats);
    float* const zeros = Scratch::floats(2, channels + kLanes);
    clear(zeros, channels + kLanes);
    for (int64_t t = 0; t < count; ++t) {
      const Tile tile = tile_at(first + t);
      const int64_t d = tile.d * da->source_stride + da->source_first;
      const float* places[kSquare];
      for (int i = 0; i < kSquare; ++i) {
        const int64_t sh = tile.h + ha->source_first + i / kPoints, sw = tile.w + wa->source_first + i % kPoints;
        const bool inside = d >= 0 && d < da->source_size && sh >= 0 && sh < ha->source_size && sw >= 0 &&
                            sw < wa->source_size;
        const int64_t line = (tile.image * da->source_size + d) * ha->source_size + sh;
        places[i] = inside ? source + (line * wa->source_size + sw) * pixel + group * channels : zeros;
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
        transform(
            kMatrices<kM, kTaps>.bt, [&](int i, int j) { return load(pixels[i * kPoints + j]); },
            [&](int i, int j, Vec sum) { store(to + (i * kPoints + j) * source_floats, sum); });
      }
    }
    for (int64_t point = 0; point < kSquare; ++point) {
      const float* const weights = points + (group * kSquare + point) * channels * filled;
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
      const Tile tile = tile_at(first + t);
      const int64_t plane = tile.image * da->result_size + da->result_first + tile.d * da->result_step;
      const int64_t line = plane * ha->result_size + tile.h;
      const int64_t height = least(kM, ha->results - tile.h), width = least(kM, wa->results - tile.w);
      for (int64_t c = 0; c < columns; c += kLanes) {
        Vec values[kM][kM];
        const float* const from = products + t * filled + c;
        transform(
            kMatrices<kM, kTaps>.at, [&](int i, int j) { return load(from + (i * kPoints + j) * product_floats); },
            [&](int i, int j, Vec sum) { values[i][j] = sum; });
        const int64_t lanes = least(kLanes, columns - c);
        float* places[kM * kM];
        int64_t number = 0;
        for (int64_t m = 0; m < height; ++m) {
          for (int64_t n = 0; n < width; ++n) {
            const int64_t place = ((line + m) * wa->result_size + tile.w + n) * slide.result_pixel();
            float* const to = result + place + group * columns + c;
            store_some(to, values[m][n], lanes);
            places[number++] = to;
          }
        }
        if (!plain) finish(places, number, lanes, group * columns + c, result, epilogue);
      }
    }
  });
}

inline bool fits_tiles(const Slide& slide) {
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const bool steps = ha->source_stride == 1 && wa->source_stride == 1 && ha->source_step == 1 &&
                     wa->source_step == 1 && ha->result_step == 1 && wa->result_step == 1;
  return da->taps == 1 && steps && ha->taps == wa->taps && (ha->taps == 3 || ha->taps == 5);
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
