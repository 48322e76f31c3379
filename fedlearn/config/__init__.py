"""Configuration: YAML groups composed by Hydra, checked against dataclasses, built into objects.

``catalog`` reads the folder of YAML files alone (no Hydra, no torch), ``compose`` is the only place
that knows Hydra, ``build`` turns nodes into objects and checks across groups.
"""
