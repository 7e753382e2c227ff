"""Devices: the mesh, how everything is split over it, and several hosts under one program."""
