"""The student of the scenes' sentences with a hook that writes what every rank ends with."""

from mmengine.config import read_base

with read_base():
    from ...configs.student.refer_scenes_cpi_u import *  # noqa: F403, TID252

from tests.toy_hooks import WriteDigests

custom_hooks.append(dict(type=WriteDigests))  # noqa: C408, F405
