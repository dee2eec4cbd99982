"""Voxel grids as mesh files (GLB, OBJ, PLY, STL) and mesh files as voxel grids, through trimesh (extra `mesh`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.errors import UserError
from sfumato.solid.faces import Surface, closed_cubes, cubes
from sfumato.solid.grid import coloured
from sfumato.solid.smooth import smooth_surface

SUFFIXES = (".glb", ".obj", ".ply", ".stl")
SURFACES = ("cubes", "closed", "smooth")
READ = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
_Y_UP = (".glb", ".obj")  # formats whose readers take y for up; in the others it is z
_MOST_BYTES = 1 << 28
_MOST_FACES = 4_000_000
_SAMPLES = 40  # points that a surface is sampled at, for each cell that it can meet
Voxels = NDArray[np.uint8]


def surface_of(voxels: Voxels, surface: str) -> Surface:
    """The mesh of a grid (4, X, Y, Z), `cubes`, `closed` or `smooth`: centred in x and y, on z = 0, a cell 1 long."""
    made = {"cubes": cubes, "closed": closed_cubes, "smooth": smooth_surface}[surface](voxels)
    middle = np.asarray([voxels.shape[1] / 2, voxels.shape[2] / 2, 0.0])
    return Surface(made.vertices - middle, made.triangles, made.colours)


def encode(voxels: Voxels, suffix: str, surface: str = "cubes") -> bytes:
    """A grid (4, X, Y, Z) uint8 as the content of a mesh file.

    GLB: y is up, cubes take their exact colours from a small texture, the other surfaces have colours at their vertices (in
    linear light, as the format asks). OBJ (y up) and PLY: colours at vertices. STL has none. Raises UserError for an empty
    grid, and where trimesh is missing.
    """
    trimesh = _trimesh(f"a {suffix} file")
    if not (voxels[3] > 0).any():
        raise UserError(f"{suffix}: the model is empty, there is no surface to write; try another seed=")
    made = surface_of(voxels, surface)
    vertices, colours = made.vertices, made.colours
    if suffix in _Y_UP:
        vertices = vertices[:, [0, 2, 1]] * np.asarray([1, 1, -1])
    if suffix == ".glb" and surface == "cubes":
        visual = _texture(trimesh, colours)
    else:
        shown = _linear(colours) if suffix == ".glb" else colours
        opaque = np.full((len(shown), 1), 255, np.uint8)
        visual = trimesh.visual.ColorVisuals(vertex_colors=np.concatenate([shown, opaque], 1))
    mesh = trimesh.Trimesh(vertices, made.triangles, visual=visual, process=False)
    raw = mesh.export(file_type=suffix[1:])
    return raw if isinstance(raw, bytes) else bytes(raw, "utf-8")


def voxelise(source: Path | bytes, size: int, suffix: str = "") -> Voxels:
    """A mesh file as a grid (4, size, size, size): the longest side fills it, standing on the ground, centred in x and y.

    A cell is occupied where the surface, sampled evenly, meets it, in its most common colour; closed insides are filled with
    the colour of the nearest surface cell. Files of formats with y up are turned to z up. Raises UserError for a file that
    can't be read as a mesh, has no surface or too large a one.
    """
    where = str(source) if isinstance(source, Path) else suffix
    trimesh = _trimesh(where)
    suffix = suffix or (source.suffix.lower() if isinstance(source, Path) else "")
    if isinstance(source, Path) and source.stat().st_size > _MOST_BYTES:
        raise UserError(f"{where}: over 256 MiB of mesh; reduce it first")
    raw = source.read_bytes() if isinstance(source, Path) else source
    try:
        mesh: Any = trimesh.load(io.BytesIO(raw), file_type=suffix[1:], force="mesh", skip_materials=False)
        faces = len(mesh.faces)
    except Exception as error:  # every format has errors of its own
        raise UserError(
            f"{where}: can't be read as a mesh ({str(error) or type(error).__name__}); save it again"
        ) from None
    if not faces or not np.isfinite(mesh.vertices).all() or not float(np.ptp(mesh.vertices, axis=0).max()) > 0:
        raise UserError(f"{where}: has no surface to voxelise (no faces, or no extent)")
    if faces > _MOST_FACES:
        raise UserError(f"{where}: has {faces:,} faces; reduce it to {_MOST_FACES:,} or fewer")
    points, colours = _sampled(trimesh, mesh, size)
    if suffix in (".glb", ".gltf", ".obj"):
        points = points[:, [0, 2, 1]] * np.asarray([1, -1, 1])
    return _filled(_cells(points, size), colours, size)


def _sampled(trimesh: Any, mesh: Any, size: int) -> tuple[NDArray[np.float64], Voxels]:
    """Points on the surface with their colours, evenly spread, the same at every call."""
    side = float(np.ptp(mesh.vertices, axis=0).max()) / size
    count = int(np.clip(mesh.area / side**2 * _SAMPLES, 2_000, 4_000_000))
    points, index = trimesh.sample.sample_surface(mesh, count, seed=0)
    triangles = mesh.triangles[index]
    weights = trimesh.triangles.points_to_barycentric(triangles, points)
    visual = mesh.visual
    uv = getattr(visual, "uv", None)
    if visual.kind == "texture" and uv is not None and len(uv) == len(mesh.vertices):
        at = (uv[mesh.faces[index]] * weights[..., None]).sum(1)
        rgba = visual.material.to_color(at)
    else:
        coloured = visual if visual.kind != "texture" else visual.to_color()
        rgba = (
            coloured.face_colors[index]
            if coloured.kind != "vertex"
            else coloured.vertex_colors[mesh.faces[index][:, 0]]
        )
    return np.asarray(points), np.asarray(rgba, np.uint8)[:, :3]


def _cells(points: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    low, high = points.min(0), points.max(0)
    scale = size / float((high - low).max()) * (1 - 1e-6)
    moved = (points - low) * scale
    extent = (high - low) * scale
    moved[:, :2] += np.floor((size - extent[:2]) / 2)
    return np.asarray(np.clip(np.floor(moved), 0, size - 1), np.int64)


def _filled(cells: NDArray[np.int64], colours: Voxels, size: int) -> Voxels:
    """The most common colour of each cell met, and closed insides in the nearest one's."""
    grid = coloured(cells @ np.asarray([size * size, size, 1]), colours, (size, size, size))
    inside = _inside(grid[3] > 0)
    while inside.any():  # colours grow inwards, a layer at a time
        for axis in range(1, 4):
            for shift in (1, -1):
                near = np.roll(grid, shift, axis)
                take = inside & (near[3] > 0)
                grid[:, take] = near[:, take]
                inside &= ~take
    return grid


def _inside(occupied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Empty cells that no path through faces joins to the outside."""
    outside = np.pad(~occupied, 1, constant_values=True)
    reached = np.zeros_like(outside)
    reached[0, 0, 0] = True
    while True:
        grown = reached.copy()
        for axis in range(3):
            for shift in (1, -1):
                moved = np.roll(
                    grown, shift, axis
                )  # the rim is empty all around, so that rolling over it joins nothing
                grown |= moved & outside
        if (grown == reached).all():
            return np.asarray(~occupied & ~reached[1:-1, 1:-1, 1:-1])
        reached = grown


def _texture(trimesh: Any, colours: Voxels) -> Any:
    """A texture of all colours, a pixel each, and where in it each vertex looks."""
    palette, number = np.unique(colours, axis=0, return_inverse=True)
    side = max(1, int(np.ceil(np.sqrt(len(palette)))))
    pixels = np.zeros((side * side, 3), np.uint8)
    pixels[: len(palette)] = palette
    row, column = np.divmod(number.reshape(-1), side)
    uv = np.stack([(column + 0.5) / side, 1 - (row + 0.5) / side], 1)
    image = Image.fromarray(pixels.reshape(side, side, 3))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
    return trimesh.visual.TextureVisuals(uv=uv, material=material)


def _linear(colours: Voxels) -> Voxels:
    """sRGB to linear light (IEC 61966-2-1), as glTF keeps colours of vertices."""
    c = colours / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.rint(linear * 255), np.uint8)


def _trimesh(what: str) -> Any:
    try:
        import trimesh
    except ImportError:
        raise UserError(f'{what}: meshes need trimesh; pip install "sfumato[mesh]", or write .vox or .npy') from None
    return trimesh
