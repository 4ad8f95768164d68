"""Compose configurations as the command line would, and build what they name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import hydra

# `hydra.main` adds a folder to the places where it looks; nothing public does.
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from specdec.command.default_rates import fitting

PLUG_INS = ("proposer", "tree", "verification", "cache", "pace", "train", "loss", "online")

OmegaConf.register_new_resolver("fitting", fitting, replace=True)  # ${fitting:learning_rate}


@contextmanager
def initialized(config_dir: str | None) -> Iterator[None]:
    """Let all that is composed find our configurations, and those in a folder of the user's."""
    with hydra.initialize_config_module("specdec.configs", version_base="1.3", job_name="sweep"):
        if config_dir is not None:
            state = GlobalHydra.instance().hydra
            assert state is not None
            places = state.config_loader.get_search_path()
            folder = f"file://{Path(config_dir).resolve()}"
            places.prepend("command-line", folder, SearchPathQuery(provider="schema"))
            state.config_loader = ConfigLoaderImpl(places)
        yield


def composed(group: str, name: str) -> DictConfig:
    """Compose one plug-in's configuration as `group=name` would, `configs/GROUP/NAME.yaml`."""
    return compose_decode([f"{group}={name}"])[group]


def compose_decode(overrides: Sequence[str]) -> DictConfig:
    """Compose the options of `decode`, within a job of Hydra's or without."""
    if GlobalHydra.instance().is_initialized():
        places = GlobalHydra.instance().config_loader().get_search_path().get_path()
        return deepcopy(_composed(tuple(overrides), tuple(str(each.path) for each in places)))
    # A saved configuration is built without Hydra.
    with hydra.initialize_config_module("specdec.configs", version_base="1.3"):
        return deepcopy(_composed(tuple(overrides), ()))


@cache  # a plan asks for the same options again and again, and composing is slow
def _composed(overrides: tuple[str, ...], places: tuple[str, ...]) -> DictConfig:
    return compose("decode", overrides)


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the options of an entry point, with what its plug-ins were chosen as."""
    found = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    chosen = found.hydra.runtime.choices
    with open_dict(found):
        del found["hydra"]
    return with_choices(found, chosen)


def with_choices(config: DictConfig, chosen: Mapping[str, Any]) -> DictConfig:
    """Note the names that plug-ins have on the command line, where results are named by them."""
    if "choices" in config:
        config.choices = {group: chosen[group] for group in PLUG_INS if group in chosen}
    return config
