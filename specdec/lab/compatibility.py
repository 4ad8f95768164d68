"""Which parts of an arm go together: known, and refused, before any model is loaded."""

import inspect

from specdec.core.errors import Unfit, UserError
from specdec.core.members import require_members, require_methods
from specdec.core.protocols import TreePolicy, VerificationRule
from specdec.core.values import CandidateSource, Draw
from specdec.decoding.pairing import is_lossless, require_judges
from specdec.lab.identity import files_of
from specdec.lab.option_names import named_options
from specdec.lab.part import Part
from specdec.lab.spec import ArmSpec, ModelPart, ProposerPart, is_fixed, pick
from specdec.lm.check_split import WHOLE, why_whole
from specdec.lm.draft_vocabulary import vocabulary_between
from specdec.lm.layer_kinds import why_no_trees
from specdec.lm.loadable import vocabulary_size
from specdec.lm.translation import SAME
from specdec.lm.vocabularies import UNLIKE_SIDES
from specdec.proposer.cascade import require_drawn_chain, require_inner_rule
from specdec.proposer.draft_model import OTHER_TOKENS
from specdec.proposer.hybrid import MERGE, require_hybrid, require_mergeable
from specdec.proposer.tree_fit import (
    require_heads_fit,
    require_kind,
    require_ranks,
    require_single_chain,
)
from specdec.tree.calibrated import Calibrated
from specdec.tree.calibration_file import read_calibration
from specdec.tree.chain import Chain
from specdec.tree.fixed import is_chain
from specdec.tree.sequoia import Sequoia


def require_parts_fit(spec: ArmSpec) -> None:
    """Build the tree, the rule and the judges, and refuse what cannot go together.

    Raises:
        UserError: the proposer cannot grow the tree, as far as files tell, or the rule or a judge
            is not for such candidates, or is not what it says.
    """
    tree = spec.tree.build()
    require_members(tree, "tree")
    require_proposer(spec.proposer)
    require_cascade(spec.proposer, tree)
    require_tree_fits(spec, tree)
    require_sides_fit(spec)
    require_tree_read(spec, tree)
    if spec.online is not None:
        if not is_fixed(spec):
            raise UserError(
                f"online={spec.online.name}: expected pace=fixed, not pace={spec.pace.name}: of"
                " requests that rest, states are kept for the proposer alone"
            )
        called = f"proposer={spec.proposer.name}"
        spec.online.build().require_fit(spec.proposer.source, called)
        if not spec.proposer.reads_same_tokens:
            raise Unfit(f"online={spec.online.name}: {OTHER_TOKENS}")
    rule, judges = spec.rule.build(), {name: part.build() for name, part in spec.judges.items()}
    for each in (rule, *judges.values()):
        require_members(each, "verification rule")
    draws = spec.proposer.draw(tree)
    is_lossless(rule, draws, spec.allow_lossy)
    require_judges(judges, draws)


def require_proposer(proposer: ProposerPart) -> None:
    """Refuse what is no proposer, as far as its class tells, or an object that needs no model."""
    for part in proposer.parts:
        require_proposer(part)
    arguments = dict.fromkeys(name for name in proposer.options if not name.startswith("_"))
    try:
        inspect.signature(proposer.made_by).bind_partial(**arguments)
    except TypeError as error:
        raise UserError(f"proposer: {proposer.target}: {error}") from None
    kind = proposer.kind
    if kind is not None:
        require_methods(kind, "proposer")
    ours = kind is not None and kind.__module__.startswith("specdec.")
    given = proposer.has_heads or proposer.has_layers or proposer.models
    if not ours and not given:
        require_members(proposer.build(), "proposer")


def require_cascade(proposer: ProposerPart, tree: TreePolicy) -> None:
    """Refuse what cannot draft for a model that drafts itself, as far as its class tells.

    Raises:
        UserError: it cannot, or the inner rule is not lossless for it.
    """
    inner = proposer.inner
    if inner is None:
        return
    with named_options(proposer.names):
        require_drawn_chain(tree)
    require_proposer(inner)
    if inner.has_heads or inner.has_layers:
        raise Unfit(
            f"{inner.at}={inner.name}: reads hidden states of its model, which a cascade does not"
            " hand on; expected one that copies text, or draft_model"
        )
    if not proposer.reads_same_tokens:
        raise Unfit(f"proposer={proposer.name}: its middle model reads the verifier's tokens alone")
    grown = inner.tree.build() if inner.grows_trees else tree
    rule = Part[VerificationRule](f"{proposer.at}.rule", proposer.options["rule"]).build()
    require_members(rule, "verification rule")
    with named_options(proposer.names):
        require_inner_rule(rule, inner.draw(grown))
    _require_inner_tree(inner, grown, proposer)


def _require_inner_tree(inner: ProposerPart, tree: TreePolicy, proposer: ProposerPart) -> None:
    """Refuse a tree that the inner model cannot grow, or that the middle model cannot read."""
    draft = inner.draft_model
    if draft is not None:
        require_ranks(tree, vocabulary_size(draft.checkpoint), f" in {draft.checkpoint.called}")
    _require_read(inner, tree, inner.tree.at, proposer.draft_model)


def require_tree_fits(spec: ArmSpec, tree: TreePolicy) -> None:
    """Refuse a tree that the proposer, or one of its parts, cannot grow, as far as files tell."""
    require_parts(spec.proposer, tree)
    for leaf in spec.proposer.leaves:
        # Of several parts, it is enough that one heeds the tree.
        if leaf.grows_trees or not spec.proposer.grows_trees:
            _require_tree_fits(spec, leaf, tree)


def require_parts(proposer: ProposerPart, tree: TreePolicy) -> None:
    """Refuse parts that cannot be one proposer.

    Raises:
        UserError: an option says what cannot be; or candidates that are drawn are to be merged
            (Unfit).
    """
    for part in proposer.parts:
        require_parts(part, tree)
        if part.has_layers:
            expected = "of other proposers: the verifier's layers are run for one proposer alone"
            raise UserError(f"proposer.parts: {part.name}: expected parts {expected}")
    if proposer.source is CandidateSource.PARTS and proposer.is_ours:
        options = [proposer.get(name) for name in ("parts", "mode", "costs", "num_nodes")]
        with named_options(proposer.names):
            require_hybrid(*options)
            require_mergeable(str(proposer.get("mode")), proposer.draw(tree))


def _require_tree_fits(spec: ArmSpec, proposer: ProposerPart, tree: TreePolicy) -> None:
    draft = proposer.draft_model
    if proposer.has_heads:
        heads = getattr(proposer.kind, "kind", None)
        with named_options(proposer.names):
            if isinstance(heads, type):
                require_kind(heads.__name__, proposer.get("path"))
            require_heads_fit(tree, proposer.get("path"))
    elif proposer.has_layers:
        require_exit_fits(spec, tree)
    elif draft is not None:
        require_draft_tokens(spec, proposer, tree)
    elif proposer.source is CandidateSource.TEXT:
        require_plain_chain(tree, proposer.name, spec.tree.name)


def require_draft_tokens(spec: ArmSpec, proposer: ProposerPart, tree: TreePolicy) -> None:
    """Refuse a tree of more ranks than a draft model has tokens to choose from, or of its text."""
    draft = proposer.draft_model
    assert draft is not None
    checkpoint, num_tokens = draft.checkpoint, vocabulary_size(draft.checkpoint)
    if proposer.drafts_text:
        require_single_chain(tree, spec.tree.name)
    elif draft.vocabulary != SAME:
        found = vocabulary_between(checkpoint, spec.verifier.checkpoint, draft.vocabulary)
        num_tokens = num_tokens if found is None else len(found.pairs)
    require_ranks(tree, num_tokens, f" in {checkpoint.called}")


def require_exit_fits(spec: ArmSpec, tree: TreePolicy) -> None:
    """Refuse an exit of something else, and a verifier whose layers cannot be run apart."""
    proposer, checkpoint = spec.proposer, spec.verifier.checkpoint
    reason = why_whole(checkpoint.config)
    if reason is not None:
        kind = checkpoint.config.model_type
        raise Unfit(f"proposer={proposer.name}: {kind} {WHOLE}: {reason}")
    require_ranks(tree, vocabulary_size(checkpoint), f" in {checkpoint.called}")
    trained = getattr(proposer.kind, "kind", None)
    if isinstance(trained, type) and proposer.path is not None:
        with named_options(proposer.names):
            require_kind(trained.__name__, proposer.path)


def require_sides_fit(spec: ArmSpec) -> None:
    """Refuse a draft model without an encoder beside a verifier with one, and the reverse."""
    leaves = spec.proposer.leaves
    drafts_of = [each.draft_model for leaf in leaves for each in (leaf, leaf.inner) if each]
    for draft in drafts_of:
        if draft is None:
            continue
        reads, drafts = has_encoder(spec.verifier), has_encoder(draft)
        if reads != drafts:
            raise Unfit(f"{draft.checkpoint.called}: {UNLIKE_SIDES[drafts]}")


def has_encoder(model: ModelPart) -> bool:
    """Whether a model reads a source beside its text."""
    return bool(model.checkpoint.config.is_encoder_decoder)


def require_decoder(model: ModelPart, why: str) -> None:
    """Refuse a model with an encoder; `why` says what it does not go with.

    Raises:
        UserError: it has one.
    """
    if has_encoder(model):
        kind = f"{model.checkpoint.config.model_type} is an encoder-decoder model"
        raise UserError(f"{model.checkpoint.called}: {kind}; {why}")


def require_tree_read(spec: ArmSpec, tree: TreePolicy) -> None:
    """Refuse a tree with branches where the verifier, or the draft model, reads chains alone."""
    _require_read(spec.proposer, tree, f"tree={spec.tree.name}", spec.verifier)


def _require_read(
    proposer: ProposerPart, tree: TreePolicy, called: str, reader: ModelPart | None
) -> None:
    """Refuse branches for a model that reads its candidates, or a draft model that grows them."""
    option = _branching(proposer, tree, called)
    drafts = [] if is_chain(tree) else [leaf.draft_model for leaf in proposer.leaves]
    for model in (reader, *drafts) if option is not None else ():
        reason = None if model is None else why_no_trees(model.checkpoint.config)
        if model is not None and reason is not None:
            raise Unfit(
                f"{option}: {model.checkpoint.called} cannot read trees, since {reason};"
                " expected tree=chain"
            )


def _branching(proposer: ProposerPart, tree: TreePolicy, called: str) -> str | None:
    """Return the option by which candidates branch, `called` if it is the tree; None: none does."""
    grows = any(leaf.source is not CandidateSource.NOTHING for leaf in proposer.leaves)
    if grows and not is_chain(tree):
        return called
    if proposer.get("mode") == MERGE and proposer.parts:
        return f"{proposer.at}.mode={MERGE}"
    return next((option for option in map(_own_tree, proposer.leaves) if option is not None), None)


def _own_tree(proposer: ProposerPart) -> str | None:
    """Return the option by which what is looked up becomes a tree of its own; None: it does not."""
    number = proposer.get("num_nodes")
    looked_up = proposer.source is CandidateSource.TEXT and proposer.is_ours
    return f"{proposer.at}.num_nodes={number}" if looked_up and number is not None else None


def require_plain_chain(tree: TreePolicy, proposer: str, name: str) -> None:
    """Refuse what `proposer`, which takes only the length from its tree, would not heed."""
    reason = f"proposer={proposer} copies one text and knows no probabilities; expected"
    if not isinstance(tree, Chain) or tree.draw is not Draw.SINGLE:
        raise Unfit(f"tree={name}: {reason} tree=chain")
    if tree.min_confidence > 0:
        raise Unfit(f"tree.min_confidence={tree.min_confidence}: {reason} 0")


def calibration_notes(spec: ArmSpec) -> list[str]:
    """Say where a measured tree is used otherwise than it was measured; lossless all the same."""
    kind = spec.tree.kind
    if kind is None or not issubclass(kind, Calibrated | Sequoia):
        return []
    path, heads = spec.tree.options["path"], spec.proposer.has_heads
    found = read_calibration(path, dict)
    here = {
        "proposer": spec.proposer.name,
        "proposer.path": spec.proposer.path if heads else None,
        "draft.path": None if heads else spec.draft.path,
        "verifier.path": spec.verifier.path,
    }
    measured = {name: found.get(name.replace(".", "_")) for name in here}
    states = pick(spec.options, [f"{node}.revision" for node in ("proposer", "draft", "verifier")])
    for name, digest in files_of({**here, **states}).items():
        if digest == found.get("files", {}).get(name):  # the same, however it is written
            measured[name] = here[name]
        elif measured[name] == here[name]:  # another one, in the place of that one
            measured[name] = f"{measured[name]} as it was then"
    if issubclass(kind, Sequoia):
        at = found["positional"].get("sampling", {})
        for name in ("temperature", "top_k", "top_p", "min_p"):
            here[f"sampling.{name}"] = spec.sampling.options[name]
            measured[f"sampling.{name}"] = at.get(name)
    return [
        f"note: tree.path={path} was measured with {name}={then}, this is {here[name]}"
        for name, then in measured.items()
        if None not in (then, here[name]) and then != here[name]
    ]
