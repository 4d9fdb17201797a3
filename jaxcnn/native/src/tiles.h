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

// Returns the least multiple of a cache line's floats that is no less than `floats` and is odd in lines: arrays that
// far apart use different sets of a cache.
constexpr int64_t odd_lines(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

// If each task evaluates a block of source tiles:
constexpr int64_t kTileBlockFloats = 200 << 10;  // most floats of the block's tiles at the points and of their products
constexpr int64_t kMostBlockTiles = 4 * kRows;   // most tiles of the block
// If each task evaluates a panel of the kernel, again for each block of source tiles:
constexpr int64_t kSharedFloats = 1 << 20;  // most floats of the block's tiles at the points, which all threads read
constexpr int64_t kLeastTiles = 96;         // fewest tiles of the block, even if they have more floats than that
constexpr int64_t kPartTiles = 48;          // tiles whose products by a panel stay in the second-level cache

// Computes a slide by tiles. Of the source and the kernel at the points, the smaller one is computed first. Each task
// then computes its own part of the other, which stays in the processor's cache for the products.
template <int kM, int kTaps>
void slide_tiles_of(const Slide& slide, const float* source, const float* kernel, float* result,
                    const Epilogue& epilogue, TaskRunner& runner) {
  constexpr int kPoints = kM + kTaps - 1, kSquare = kPoints * kPoints;
  const SlideAxis *da = slide.axis, *ha = slide.axis + 1, *wa = slide.axis + 2;
  const int64_t channels = slide.source_channels, columns = slide.result_channels, groups = slide.groups;
  const int64_t panels = ceil_div(columns, kColumns), pixel = slide.source_pixel();
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
  const int64_t chunks = ceil_div(channels, kDepth), chunk = ceil_div(channels, chunks);
  const bool shares_kernel = columns <= tiles, plain = is_empty(epilogue);
  // Floats from one tile of the source to the next at a point, and from one point to the next.
  const int64_t pitch = odd_lines(ceil_div(channels, kLanes) * kLanes);
  const int64_t kernel_pitch = odd_lines(channels * kColumns), product_pitch = odd_lines(kPartTiles * kColumns);
  int64_t block_tiles = most(kLeastTiles, kSharedFloats / (groups * kSquare * pitch));
  if (shares_kernel) {
    block_tiles = kTileBlockFloats / (kSquare * (pitch + kColumns)) / kRows * kRows;
    block_tiles = most(kRows, least(block_tiles, kMostBlockTiles));
    const int64_t threads = runner.threads();
    while (threads > 1 && block_tiles > kRows && ceil_div(tiles, block_tiles) * groups < 2 * threads) {
      block_tiles -= kRows;
    }
  }
  const int64_t blocks = ceil_div(tiles, block_tiles), source_pitch = odd_lines(block_tiles * pitch);

  // Evaluates tile `number` of the source: one row for each point.
  const auto read_tile = [&](int64_t group, int64_t number, float* to) {
    float* const zeros = Scratch::floats(2, channels + kLanes);
    clear(zeros, channels + kLanes);
    const Tile tile = tile_at(number);
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
      for (int i = 0; i < kSquare; ++i) {
        pixels[i] = places[i] + c;
        if (c + kLanes <= channels) continue;
        store(copies[i], load_some(pixels[i], channels - c));
        pixels[i] = copies[i];
      }
      transform(
          kMatrices<kM, kTaps>.bt, [&](int i, int j) { return load(pixels[i * kPoints + j]); },
          [&](int i, int j, Vec sum) { store(to + (i * kPoints + j) * source_pitch + c, sum); });
    }
  };
  // Multiplies the tiles [first, end) by a panel of the kernel and interpolates the results.
  const auto multiply = [&](int64_t group, int64_t panel, const float* sources, const float* points, int64_t first,
                            int64_t end) {
    const int64_t column = panel * kColumns, width = least(kColumns, columns - column);
    const int64_t vectors = ceil_div(width, kLanes), filled = vectors * kLanes, channel = group * columns + column;
    const int64_t count = end - first, row_tiles = ceil_div(count, kRows);
    float* const products = Scratch::floats(1, kSquare * product_pitch);
    for (int64_t point = 0; point < kSquare; ++point) {
      for (int64_t k = 0; k < channels; k += chunk) {
        const Segment segment = {k, least(chunk, channels - k)};
        for (int64_t i = 0; i < row_tiles; ++i) {
          const int64_t t = count * i / row_tiles, rows = count * (i + 1) / row_tiles - t;
          float* to[kRows];
          const float* from[kRows];
          for (int64_t r = 0; r < rows; ++r) {
            from[r] = sources + point * source_pitch + (t + r) * pitch;
            to[r] = products + point * product_pitch + (t + r) * filled;
          }
          const Product in = {from, &segment, 1, points + point * kernel_pitch + k * filled};
          run_tile<PixelTile>(rows, vectors, in, to, filled, k == 0, nullptr);
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      const Tile tile = tile_at(first + t);
      const int64_t plane = tile.image * da->result_size + da->result_first + tile.d * da->result_step;
      const int64_t line = plane * ha->result_size + tile.h;
      const int64_t height = least(kM, ha->results - tile.h), length = least(kM, wa->results - tile.w);
      float* places[kM * kM];
      for (int64_t i = 0; i < height * length; ++i) {
        const int64_t place = (line + i / length) * wa->result_size + tile.w + i % length;
        places[i] = result + place * slide.result_pixel() + channel;
      }
      for (int64_t c = 0; c < width; c += kLanes) {
        Vec values[kM][kM];
        const float* const from = products + t * filled + c;
        transform(
            kMatrices<kM, kTaps>.at, [&](int i, int j) { return load(from + (i * kPoints + j) * product_pitch); },
            [&](int i, int j, Vec sum) { values[i][j] = sum; });
        float* const* place = places;
        for (int64_t m = 0; m < height; ++m) {
          for (int64_t n = 0; n < length; ++n) store_some(*place++ + c, values[m][n], least(kLanes, width - c));
        }
      }
      if (!plain) finish(places, height * length, width, channel, result, epilogue);
    }
  };

  const int64_t panel_floats = kSquare * kernel_pitch, block_floats = kSquare * source_pitch;
  // Evaluates a panel of the kernel: [point][channel][column].
  const auto evaluate = [&](int64_t group, int64_t panel, float* to) {
    const int64_t column = panel * kColumns, width = least(kColumns, columns - column);
    const int64_t vectors = ceil_div(width, kLanes), size = channels * vectors * kLanes;
    float* const packed = Scratch::floats(4, kTaps * kTaps * size);
    pack_columns(slide, kernel, group, 0, kTaps * kTaps * channels, column, width, packed);
    for (int64_t i = 0; i < size; i += kLanes) {
      transform(
          kMatrices<kM, kTaps>.g, [&](int h, int w) { return load(packed + (h * kTaps + w) * size + i); },
          [&](int h, int w, Vec sum) { store(to + (h * kPoints + w) * kernel_pitch + i, sum); });
    }
  };
  if (shares_kernel) {
    float* const points = Scratch::floats(3, groups * panels * panel_floats);
    parallel(runner, groups * panels,
             [&](int64_t task) { evaluate(task / panels, task % panels, points + task * panel_floats); });
    parallel(runner, blocks * groups, [&](int64_t task) {
      const int64_t group = task % groups, first = task / groups * block_tiles;
      const int64_t end = least(first + block_tiles, tiles);
      float* const sources = Scratch::floats(0, block_floats);
      for (int64_t t = first; t < end; ++t) read_tile(group, t, sources + (t - first) * pitch);
      for (int64_t panel = 0; panel < panels; ++panel) {
        multiply(group, panel, sources, points + (group * panels + panel) * panel_floats, first, end);
      }
    });
    return;
  }
  float* const sources = Scratch::floats(3, groups * block_floats);
  for (int64_t first = 0; first < tiles; first += block_tiles) {
    const int64_t end = least(first + block_tiles, tiles);
    parallel(runner, (end - first) * groups, [&](int64_t task) {
      const int64_t group = task % groups, t = task / groups;
      read_tile(group, first + t, sources + group * block_floats + t * pitch);
    });
    parallel(runner, panels * groups, [&](int64_t task) {
      const int64_t group = task / panels, panel = task % panels;
      float* const points = Scratch::floats(0, panel_floats);
      evaluate(group, panel, points);
      for (int64_t part = first; part < end; part += kPartTiles) {
        const float* const from = sources + group * block_floats + (part - first) * pitch;
        multiply(group, panel, from, points, part, least(part + kPartTiles, end));
      }
    });
  }
}

// Returns whether `slide_tiles` computes a slide: 3x3 or 5x5 at stride 1 without dilation, and one tap in depth.
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
