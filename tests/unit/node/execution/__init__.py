"""Tests of `node.execution`: no store and no clock but those of `world`."""
