"""Solids: voxel grids as files, meshes and pictures. Knows nothing of models."""
