#pragma once
#include "../common/march.h"
#include "tensors.h"

namespace nerftrain {

// boxes has six numbers per level: the lower and the upper corner. side: 0 where there are no bits.
inline OccupancyGrid grid_of(const std::vector<double>& boxes, const std::vector<int64_t>& resolution, int64_t side) {
  OccupancyGrid grid{};
  grid.num_levels = int(boxes.size() / 6);
  grid.side = int(side);
  for (int a = 0; a < 3; ++a) grid.resolution[a] = int(resolution[a]);
  for (int level = 0; level < grid.num_levels; ++level)
    for (int a = 0; a < 3; ++a) {
      const double low = boxes[6 * level + a], high = boxes[6 * level + 3 + a];
      grid.center[level][a] = float((low + high) / 2);
      grid.half[level][a] = float((high - low) / 2);
      grid.inverse[level][a] = 1.f / grid.half[level][a];
    }
  return grid;
}

using GridBits = std::tuple<Tensor, Tensor, Tensor>;  // of OccupancyBits

// What follows from the words of cells [L, (side / 4)^3], and which of them have any.
template <class Backend>
GridBits pack_blocks(const Tensor& cells, const Tensor& any, int64_t side) {
  Tensor blocks = make(cells, {any.size(0), cubed(side / 16)});
  Tensor empty = make(cells, {any.size(0), any.size(1)}, ScalarType::Byte);
  Backend::for_each(cells, blocks.size(0) * blocks.size(1),
                    PackBlocks{read<bool>(any), int(side / 4), reinterpret_cast<uint64_t*>(write<int64_t>(blocks)),
                               write<uint8_t>(empty)});
  return {cells, blocks, empty};
}

template <class Backend>
GridBits pack_grid(const Tensor& occupied) {
  const int64_t levels = occupied.size(0), side = occupied.size(1);
  Tensor cells = make(occupied, {levels, cubed(side / 4)}, ScalarType::Long);
  Tensor any = make(occupied, {levels, cubed(side / 4)});
  Backend::for_each(
      occupied, cells.size(0) * cells.size(1),
      PackCells{read<bool>(occupied), int(side), reinterpret_cast<uint64_t*>(write<int64_t>(cells)), write<bool>(any)});
  return pack_blocks<Backend>(cells, any, side);
}

// The bits of each slice of time, from those of all time [L, ...] and which cubes of 2^3 cells [T, L, (side / 2)^3]
// hold anything in it.
template <class Backend>
GridBits slice_grid(const Tensor& cells, const Tensor& live) {
  const int64_t slices = live.size(0), levels = live.size(1), side = 2 * live.size(2);
  if (cells.size(0) != levels || cells.size(1) != cubed(side / 4) || side % 16)
    throw std::runtime_error("slice_grid: cubes of 2^3 cells of the grid itself");
  Tensor words = make(cells, {slices * levels, cubed(side / 4)});
  Tensor any = make(live, {words.size(0), words.size(1)});
  const SliceBits slice{reinterpret_cast<const uint64_t*>(read<int64_t>(cells)), read<bool>(live), levels, int(side),
                        reinterpret_cast<uint64_t*>(write<int64_t>(words)),      write<bool>(any)};
  Backend::for_each(cells, words.size(0) * words.size(1), slice);
  return pack_blocks<Backend>(words, any, side);
}

// counts is [C][mask height + 1][mask width + 1], or empty where there are no masks.
template <class Backend>
Tensor visible_cells(const Tensor& poses, const Tensor& intrinsics, const Tensor& sizes, const Tensor& counts,
                     double mask_scale, std::vector<double> boxes, std::vector<int64_t> resolution, double near) {
  const OccupancyGrid grid = grid_of(boxes, resolution, 0);
  Tensor visible = make(poses, {grid.num_levels, resolution[0], resolution[1], resolution[2]}, ScalarType::Bool);
  const bool masked = counts.size(0) > 0;
  const VisibleCells body{read<float>(poses),
                          read<float>(intrinsics),
                          read<float>(sizes),
                          masked ? read<int32_t>(counts) : nullptr,
                          masked ? int(counts.size(2)) - 1 : 0,
                          masked ? int(counts.size(1)) - 1 : 0,
                          float(mask_scale),
                          poses.size(0),
                          grid,
                          float(near),
                          write<bool>(visible)};
  Backend::for_each(poses, grid.num_levels * resolution[0] * resolution[1] * resolution[2], body);
  return visible;
}

inline MarchRays march_rays(const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
                            const Tensor& jitter, const Tensor& slices, const Tensor& cells, const Tensor& blocks,
                            const std::vector<double>& boxes, const std::vector<int64_t>& resolution, int64_t side,
                            double step, double cone_angle, int64_t max_steps, int64_t max_samples) {
  OccupancyGrid grid = grid_of(boxes, resolution, side);
  grid.bits = {reinterpret_cast<const uint64_t*>(read<int64_t>(cells)),
               reinterpret_cast<const uint64_t*>(read<int64_t>(blocks)), nullptr};
  if (slices.numel() != 0 && slices.numel() != origins.size(0))
    throw std::runtime_error("march: a slice of time for each ray, or none");
  const MarchSettings settings{float(step), float(cone_angle), int(max_steps), int(max_samples)};
  return {grid,
          settings,
          read<float>(origins),
          read<float>(directions),
          read<float>(near),
          read<float>(far),
          read<float>(jitter),
          read_or_none<int32_t>(slices),
          int(cells.size(0) / std::max(grid.num_levels, 1))};
}

template <class Backend>
std::tuple<Tensor, Tensor> march_count(const Tensor& origins, const Tensor& directions, const Tensor& near,
                                       const Tensor& far, const Tensor& jitter, const Tensor& slices,
                                       const Tensor& cells, const Tensor& blocks, std::vector<double> boxes,
                                       std::vector<int64_t> resolution, int64_t side, double step, double cone_angle,
                                       int64_t max_steps, int64_t max_samples) {
  const MarchRays rays = march_rays(origins, directions, near, far, jitter, slices, cells, blocks, boxes, resolution,
                                    side, step, cone_angle, max_steps, max_samples);
  Tensor counts = make(origins, {origins.size(0)}, ScalarType::Long), ends = make(origins, {origins.size(0)});
  Backend::for_each(origins, origins.size(0), MarchCount{rays, write<int64_t>(counts), write<float>(ends)});
  return {counts, ends};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> march_write(const Tensor& origins, const Tensor& directions, const Tensor& near,
                                               const Tensor& far, const Tensor& jitter, const Tensor& slices,
                                               const Tensor& cells, const Tensor& blocks, std::vector<double> boxes,
                                               std::vector<int64_t> resolution, int64_t side, double step,
                                               double cone_angle, int64_t max_steps, int64_t max_samples,
                                               const Tensor& offsets, int64_t num_samples) {
  const MarchRays rays = march_rays(origins, directions, near, far, jitter, slices, cells, blocks, boxes, resolution,
                                    side, step, cone_angle, max_steps, max_samples);
  Tensor t_starts = make(origins, {num_samples}), t_ends = make(origins, {num_samples});
  Tensor ray_indices = make(offsets, {num_samples});
  const MarchWrite body{rays, read<int64_t>(offsets), write<float>(t_starts), write<float>(t_ends),
                        write<int64_t>(ray_indices)};
  for_each_ray<Backend>(origins, offsets, {t_starts, t_ends, ray_indices}, body);
  return {t_starts, t_ends, ray_indices};
}

template <class Backend, class T>
void visible_samples_as(const Tensor& density, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
                        const Tensor& least, double early_stop_eps, const Tensor& arriving, Tensor& visible,
                        Tensor& leaving) {
  const VisibleSamples<T> body{read<T>(density),          read<T>(t_starts),    read<T>(t_ends),
                               read<int64_t>(offsets),    read<T>(least),       T(early_stop_eps),
                               read_or_none<T>(arriving), write<bool>(visible), write<T>(leaving)};
  for_each_ray<Backend>(density, offsets, {visible}, body);
}

// least: [2], of the opacity and of the weight.
template <class Backend>
std::tuple<Tensor, Tensor> visible_samples(const Tensor& density, const Tensor& t_starts, const Tensor& t_ends,
                                           const Tensor& offsets, const Tensor& least, double early_stop_eps,
                                           const Tensor& arriving) {
  Tensor visible = make(density, {density.size(0)}, ScalarType::Bool), leaving = make(density, {offsets.size(0) - 1});
  const auto run = is_double(density) ? visible_samples_as<Backend, double> : visible_samples_as<Backend, float>;
  run(density, t_starts, t_ends, offsets, least, early_stop_eps, arriving, visible, leaving);
  return {visible, leaving};
}

template <class Backend, class T>
Tensor alpha_shares_as(const Tensor& density, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets) {
  Tensor shares = make(density, {AlphaShares<T>::kParts});
  const AlphaShares<T> body{read<T>(density),       read<T>(t_starts),   read<T>(t_ends),
                            read<int64_t>(offsets), offsets.size(0) - 1, write<T>(shares)};
  Backend::for_each(density, AlphaShares<T>::kParts, body);
  return shares;
}

template <class Backend>
Tensor alpha_shares(const Tensor& density, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets) {
  const auto run = is_double(density) ? alpha_shares_as<Backend, double> : alpha_shares_as<Backend, float>;
  return run(density, t_starts, t_ends, offsets);
}

}  // namespace nerftrain
