"""Speculative decoding for research: proposers, trees, verification rules, and honest numbers.

import specdec as sd
verifier, draft = sd.load("zoo:verifier"), sd.load("zoo:draft")
proposer = sd.DraftModel(draft, sd.Chain(gamma=4))
traces = sd.generate(verifier, proposer, ["import os"], sampling=sd.Sampling(0.7))
print(traces[0].output_text, sd.summarize(sd.Tally.of(traces))["block_efficiency"])

The public names are those that `__init__.pyi` lists. Each is imported when it is first used: torch
takes seconds, and `--help` should not wait for it.
"""

import lazy_loader

from specdec.version import VERSION

__version__ = VERSION
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
