"""Which faults, planted in a copy of the product, do the tests notice?

    python -m tests.planted_faults [--only WORDS]

Each fault changes one line. The tests of the folders named beside it run, as CI runs them, until
the first fails. A fault that nothing notices is printed, and the exit code is 1. A text that does
not stand in its file exactly once means that the product was written anew: write the fault anew.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "outputs", "__pycache__", "*.egg-info")


@dataclass(frozen=True)
class Fault:
    """One line of the product, written wrongly; `tests` are those that should notice."""

    file: str
    old: str
    new: str
    tests: str  # folders and files below `tests`

    @property
    def name(self) -> str:
        """What is shown of it."""
        return f"{self.file}: {self.old.strip()}  ->  {self.new.strip()}"


FAULTS = (
    # Blocks of masks.
    Fault("heads/block_attention.py", "> last[:, None, :, None, None]",
          "> 1 + last[:, None, :, None, None]", "training/test_block_training.py"),
    Fault("heads/block_attention.py", ".triu(1)", ".triu(2)", "training/test_block_training.py"),
    Fault("heads/block.py", "torch.arange(1, hidden.shape[1] + 1",
          "torch.arange(hidden.shape[1]", "training/test_block_training.py"),
    Fault("heads/block.py", "first[text[order]]", "0", "training/test_block_training.py"),
    Fault("proposer/block.py", "seen = seen[:, -1:].expand(-1, hidden.shape[1], -1)", "pass",
          "proposer/test_block_draft.py"),
    Fault("proposer/block.py", "self._text.truncate(row, length)", "pass",
          "proposer/test_block_draft.py"),
    Fault("proposer/feature_proposer.py", "token_ids = frontier.token_ids", "pass",
          "proposer/test_block_draft.py"),
    # Chains of features.
    Fault("heads/eagle.py", "torch.arange(step, step + both.shape[1]",
          "torch.arange(0, both.shape[1]", "training/test_eagle_training.py"),
    Fault("heads/eagle.py", "pad(token_ids, (0, step + 1))[:, step + 1 :]",
          "pad(token_ids, (0, step))[:, step:]", "training/test_eagle_training.py"),
    Fault("heads/unrolled.py", ".triu(1)", ".triu(2)", "training/test_eagle_training.py"),
    Fault("proposer/eagle.py", "self._rows.truncate(row, length)", "pass",
          "proposer/test_eagle.py"),
    Fault("proposer/feature_proposer.py", "self._cells.truncate(context.row, 0)", "pass",
          "proposer/test_eagle.py"),
    Fault("training/head_losses.py", "hidden[..., -self.heads.hidden_size :]",
          "hidden[..., : self.heads.hidden_size]", "training/test_eagle_training.py"),
    # What learns while it drafts.
    Fault("proposer/draft_model.py", "self.model = own = lm.with_own_weights()", "own = lm",
          "online"),
    Fault("online/student.py", "weight.copy_(learned)", "pass", "online"),
    Fault("online/student.py", "copy.deepcopy(drafting).float()", "drafting.float()", "online"),
    Fault("online/texts.py", "whole[self.gone + len(self.token_ids) :]",
          "whole[len(self.token_ids) :]", "online"),
    Fault("online/texts.py", "counted[row, first : len(ids)] = True", "counted[row] = True",
          "online"),
    Fault("lab/kept_learner.py", "{trace.prompt_key for trace in traces} == set(done)", "True",
          "online"),
    Fault("lab/kept_learner.py", "if k in done}", "}", "online"),
    Fault("lab/arm.py", "short.learner = None", "pass", "online"),
    Fault("online/learner.py", "num_since == self._timetable.delay", "num_since == 0", "online"),
    Fault("online/learner.py", "copy.deepcopy(self._optimizer.state_dict())",
          "self._optimizer.state_dict()", "online"),
    Fault("online/learner.py", "self._end_lesson()  # of decoding that was", "pass  # that was",
          "online"),
    Fault("online/lesson.py", "over.result()", "pass", "online"),
    Fault("online/lesson.py", "wait([self._running])", "pass", "online"),
    Fault("online/anchor.py", "weight.detach().clone()", "weight.detach()", "online"),
    Fault("decoding/decoder.py", "self.learner.end()", "pass", "online"),
    # Depths that choose themselves.
    Fault("decoding/asking.py", "depth=None if depth >= proposer.max_depth else depth",
          "depth=int(2 * context.verify_stream.peek(1)[0] * depth)", "pacing"),
    Fault("decoding/decoder.py", "flight.features = {}", "pass", "pacing"),
    Fault("decoding/request.py", "self.features[layer], new)", "new, self.features[layer])",
          "pacing"),
    Fault("pacing/chances.py", "tested = min(depth, accepted + failed)", "tested = depth",
          "pacing"),
    Fault("pacing/ledger.py", "self._lost += seconds - plain", "self._lost += 0.0", "pacing"),
    Fault("replaying/paced.py", "sum(chance < each for each in survival[1:])", "0", "pacing"),
    # One text, step by step.
    Fault("lab/explanation/watched_tree.py", "self._frontier = [paths[place]",
          "self._frontier = [paths[0 * place]", "lab/test_explanation.py"),
    Fault("lab/explanation/watched_rule.py", "self.heard[-1].number < probability",
          "self.heard[-1].number <= 0.5", "lab/test_explanation.py"),
    Fault("lab/explanation/watch.py", "decoder.rule = rule", "pass", "lab/test_explanation.py"),
    # The cache and the mask.
    Fault("lm/cache.py", "self.lengths[row] = end", "self.lengths[row] = end - 1", "lm decoding"),
    Fault("lm/cache.py", "on_device([prefix + node for", "on_device([prefix + 0 * node for",
          "lm decoding"),
    Fault("runtime/program.py", "inputs.columns <= own", "inputs.columns < own + 2",
          "runtime"),
    Fault("runtime/graphs.py", "each.clone() for each in self.results", "self.results", "runtime"),
    Fault("runtime/graphs.py", "each.data_ptr() for each", "0 for each", "runtime"),
    Fault("runtime/graphs.py", "(*inputs[:3], *inputs.draws)", "(*inputs[:3], *static.draws)",
          "runtime"),
    Fault("runtime/program.py", "positions = slots.clamp", "positions = (slots - 1).clamp",
          "runtime"),
    Fault("lm/chain_cells.py", "length - 1 for length", "0 * length for length", "runtime"),
    Fault("runtime/direct.py", "arguments[argument] = inputs[place]", "pass", "runtime"),
    Fault("runtime/graphs.py", "ours[..., length:].fill_", "ours[..., length + 1 :].fill_",
          "runtime"),
    Fault("runtime/graphs.py", "each() is None", "each is None", "runtime"),
    Fault("lm/new_cells.py", "own_attend.index_copy(0, where, attend)", "own_attend", "runtime"),
    Fault("lm/mask.py", "= torch.tensor(rows)", "= torch.ones(len(rows), len(rows)).tril().bool()",
          "lm decoding"),
    Fault("lm/mask.py", "return causal_mask | whole_prompts(lengths, num_tokens)",
          "return causal_mask", "training/test_prefix_lm.py"),
    Fault("lm/mask.py", "return torch.arange(longest, device=lengths.device) < lengths",
          "return torch.arange(longest, device=lengths.device) < lengths - 1",
          "lm/test_prefix_lm.py"),
    Fault("lm/prefix_lm.py", "return attend | (inside", "return attend & (inside",
          "lm/test_prefix_lm.py"),
    Fault("training/data/readings.py", "clamp(max=number)", "clamp(max=0)",
          "training/test_prefix_lm.py"),
    Fault("decoding/decoder.py", "len(flight.token_ids) - 1, accepted)",
          "len(flight.token_ids), accepted)", "decoding"),
    Fault("decoding/decoder.py", "hidden[index, kept]", "hidden[index, kept[:1]]",
          "decoding proposer"),
    # Drafting with the verifier's own layers.
    Fault("lm/layer_split.py", "hidden = carried.states.to(hidden.device)", "pass",
          "lm/test_layer_split.py proposer/test_self_speculation.py"),
    Fault("lm/self_drafting.py", "self._lm.arrange(row, place, self._split.num_shared)", "pass",
          "lm/test_layer_split.py proposer/test_self_speculation.py"),
    Fault("lm/self_drafting.py", "torch.cat(pool)[on_device(place, device)]",
          "torch.cat(pool)[: len(place)]",
          "lm/test_layer_split.py proposer/test_self_speculation.py"),
    Fault("lm/self_drafting.py", "cell = self._children.get((above, token))", "cell = None",
          "lm/test_layer_split.py"),
    Fault("lm/self_drafting.py", "ahead = [self._num_drafted] * len(self._rows)",
          "ahead = [0] * len(self._rows)", "lm/test_layer_split.py"),
    Fault("lm/mask.py", "attend[index, cell, [start + place for place in seen]] = True",
          "attend[index, cell, start:] = True",
          "lm/test_layer_split.py proposer/test_self_speculation.py"),
    Fault("proposer/early_exit.py", "(self.blocks(states / length) * length)",
          "self.blocks(states / length)", "proposer/test_self_speculation.py"),
    # A cascade.
    Fault("proposer/cascade.py", '"inner", self._num_steps, purpose)', '"inner", purpose)',
          "proposer/test_cascade.py"),
    Fault("proposer/cascade.py", '"inner", self._num_steps, purpose)', '"inner", self._num_steps)',
          "proposer/test_cascade.py"),
    Fault("proposer/cascade.py", "budget=self.num_missing,", "budget=self.num_missing + 1,",
          "proposer/test_cascade.py"),
    Fault("proposer/cascade.py", "len(draft.text) - 1, [ROOT, *verdict.path])",
          "len(draft.text) - 1, [ROOT])", "proposer/test_cascade.py"),
    Fault("proposer/cascade.py", "probs[on_device([ROOT, *verdict.path], probs.device)]",
          "probs[: 1 + len(verdict.path)]", "proposer/test_cascade.py"),
    Fault("proposer/cascade.py", "[min(first + n, logits.shape[1] - 1)",
          "[min(n, logits.shape[1] - 1)", "proposer/test_cascade.py"),
    Fault("proposer/ngram.py", "self._before[-1][0] >= length", "self._before[-1][0] > length",
          "proposer/test_cascade.py"),
    Fault("lab/spec.py", "[*own, *self.inner.models]", "own", "lab/test_cascades.py"),
    # The rules and their noise.
    Fault("verification/rejection.py", "left = residual(rest, q, nodes.p)", "left = rest",
          "verification decoding"),
    Fault("verification/rejection.py", "refused * rest.minimum(q).sum(dim=-1) / lenience",
          "rest.minimum(q).sum(dim=-1) / lenience", "verification"),
    Fault("decoding/request.py", "len(self.steps), *purpose)", "0, *purpose)", "decoding"),
    Fault("decoding/request.py", "len(self.steps), *purpose)", "len(self.steps))", "decoding"),
    Fault("core/sampling.py", "if self.temperature != 1:", "if self.temperature > 1:",
          "core decoding"),
    # What is looked up, and hybrids.
    Fault("proposer/automaton.py", "self._link[there] = shorter", "pass",
          "proposer/test_suffix.py"),
    Fault("proposer/automaton.py", "self._count[state] += 1", "self._count[state] = 1",
          "proposer/test_suffix.py"),
    Fault("proposer/suffix_array.py", "behind[:-known] = ranks[known:] + 1",
          "behind[:-known] = ranks[known:]", "proposer/test_datastore.py"),
    Fault("proposer/datastore.py", "[*text, END]", "text", "proposer/test_datastore.py"),
    Fault("proposer/pool.py", "len(before) + accepted,", "len(before),", "proposer/test_pool.py"),
    Fault("proposer/hybrid.py", "[:end]), verdict", "), verdict", "proposer/test_hybrid.py"),
    Fault("proposer/hybrid.py", "torch.cat(each)", "each[-1]", "proposer/test_hybrid.py"),
    Fault("proposer/hybrid.py", "require_mergeable(mode, self.draw)", "pass",
          "proposer/test_hybrid.py"),
    Fault("decoding/pairing.py", "return all(found)", "return any(found)",
          "decoding/test_pairing.py"),
    # What is measured.
    Fault("metrics/columns.py", "return min(step.accepted + 1, tested)",
          "return min(step.accepted, tested)", "metrics"),
    Fault("metrics/columns.py", '"num_drafts": lambda step: step.drafted > 0',
          '"num_drafts": lambda step: step.drafted >= 0', "metrics report"),
    Fault("decoding/request.py", "_rounded(verdict.overlap[: len(emitted)])",
          "_rounded(verdict.overlap)", "decoding"),
    Fault("decoding/request.py", "accepted=min(len(verdict.path), len(emitted))",
          "accepted=len(verdict.path)", "decoding"),
    Fault("decoding/decoder.py", 'round(self.seconds["verify"] / share, 9)',
          'round(self.seconds["verify"], 9)', "decoding"),
    Fault("metrics/pit.py", "(NUM_PAIR_BINS - 1) ** 2)", "NUM_PAIR_BINS**2 - 1)", "metrics"),
    Fault("metrics/pit.py", "stats.chisquare(counts).pvalue",
          "stats.chisquare(counts, ddof=-1).pvalue", "metrics"),
    # Block verification as a public port had it: ratios for tests, and the residual of one token.
    Fault("verification/block.py", "if i >= num_nodes:", "if True:", "verification/test_exact.py"),
    Fault("verification/block.py", "return residual(ours, q, p)", "return residual(p, q, p)",
          "verification/test_exact.py"),
    # Several paths.
    Fault("verification/tilted.py", "power = power * b", "power = power * a",
          "verification/test_exact.py"),
    Fault("verification/gbv.py", "p[at], taken)", "p[at], q[at])", "verification/test_exact.py"),
    Fault("verification/gbv.py", "deepest - max(0, depth - 1)", "deepest - depth",
          "verification/test_batches.py"),
    Fault("verification/kseq_block.py", "excess + (1 - own)", "excess + 1",
          "verification/test_exact.py"),
    Fault("verification/kseq_block.py", "first * (1 - beta) ** k", "first", "replaying"),
    Fault("replaying/questions.py", "arm.width(1) if note else 1", "1", "replaying"),
    Fault("verification/top_plus_one.py", "torch.where(total > 0, others / total, fixed)",
          "others / total.clamp(min=1e-30)", "verification/test_estimators.py"),
    # Samples of a prompt, and code that comes with a model.
    Fault("decoding/turns.py", "answers[trace.prompt_key].append(",
          "answers[trace.prompt_id, 0].append(", "decoding/test_independent_samples.py"),
    Fault("decoding/turns.py", "sample=prompt.sample)", "sample=0)",
          "command/test_num_samples.py"),
    Fault("core/trace.py", "if sample == 0 else", "if sample >= 0 else",
          "decoding/test_independent_samples.py"),
    Fault("lm/fingerprint.py", "{**settings, **_own_code(lm)}", "settings",
          "lm/test_remote_code.py"),
    Fault("lm/check.py", "if error > MOST_SPREADS * own_spread(model):", "if error > 1e9:",
          "lm/test_check.py"),
    # When a text ends.
    Fault("decoding/stopping.py", "while len(tail) < enough and", "while False and", "decoding"),
    Fault("decoding/stopping.py", "self.longest + MARGIN + len(self.shown(output_ids[-1:]))",
          "self.longest",
          "decoding/test_stopping.py"),
    Fault("core/tree.py", "(parent in ends or self.token_ids[parent] in end_ids)",
          "(parent in ends)", "core tree decoding"),
    Fault("core/tree.py", "(parent in ends or self.token_ids[parent] in end_ids)",
          "(self.token_ids[parent] in end_ids)", "decoding"),
    # Processors.
    Fault("core/processing.py", "for depth in sorted(set(tree.depths))", "for depth in (0,)",
          "decoding"),
    Fault("core/processing.py", "paths[parent] if node", "paths[0] if node", "decoding"),
    Fault("proposer/paths.py", "above = self._below.gather(1, places)",
          "above = self._below[:, :1].expand(-1, token_ids.shape[1], -1)", "decoding proposer"),
    Fault("recording/texts.py", "rows, depth - 1))", "rows, depth))", "replay command"),
    # Proposers.
    Fault("proposer/growth.py", "return Sampling(temperature or default or 1.0)",
          "return Sampling(1.0)", "proposer tree/test_best_first.py"),
    Fault("proposer/growth.py", "default = of_text.temperature if is_tempered else 1.0",
          "default = 1.0", "tree/test_best_first.py"),
    Fault("tree/best_first.py", "max(1, most - 1)", "max(1, most - 2)", "tree/test_best_first.py"),
    Fault("tree/best_first.py", "most = self.num_nodes - depth + 1",
          "most = self.num_nodes - depth", "tree/test_best_first.py"),
    Fault("tree/best_first.py", "min(self._width, self.num_nodes - depth + 1)",
          "min(self._width, self.num_nodes - depth)", "tree/test_best_first.py"),
    Fault("tree/ranking.py", "place < num_above, ids,", "place < width, ids,",
          "tree/test_best_first.py"),
    Fault("tree/ranking.py", "scores * above.scores.gather(1, above.frontier)[..., None]",
          "scores", "tree"),
    Fault("tree/ranking.py", "scores.masked_fill(~there, -1.0)", "scores", "tree"),
    Fault("tree/ranking.py", "order[:, :number].sort(dim=-1).values", "order[:, :number]", "tree"),
    # Rows that are corrected by the token before.
    Fault("heads/base.py", "self.corrected(self.projected(head, state, unembed), previous_ids)",
          "self.projected(head, state, unembed)",
          "heads proposer/test_corrected_medusa.py"),
    Fault("heads/base.py", "self.reads_tokens or self.correction is not None",
          "self.reads_tokens", "replaying/test_draft_distributions.py"),
    Fault("heads/correction.py", "nn.init.zeros_(self.after.weight)", "pass", "heads"),
    Fault("proposer/feature_proposer.py", "token_ids = frontier.token_ids", "pass",
          "proposer/test_corrected_medusa.py"),
    Fault("proposer/head_programs.py", "self._heads.corrected(logits, path[:, -1:])", "logits",
          "proposer/test_corrected_medusa.py runtime/test_head_chains.py"),
    Fault("proposer/head_programs.py", "path[:, -1:]", "path[:, :1]",
          "proposer/test_corrected_medusa.py runtime/test_head_chains.py"),
    Fault("training/head_losses.py", "self._logits(verifier, head, state, ids[:, head])",
          "self._logits(verifier, head, state, ids[:, head + 1])",
          "training/test_head_training.py"),
    Fault("heads/base.py", ", *correcting]", "]", "training/test_head_training.py"),
    Fault("replaying/draft_distributions.py", "before = targets.following_ids[:, head]",
          "before = targets.following_ids[:, 0]", "replaying/test_draft_distributions.py"),
    Fault("calibration/ranks.py", "(states[head], targets.following_ids[:, head])",
          "(states[head], targets.following_ids[:, head + 1])", "calibration/test_ranks.py"),
    Fault("calibration/positional_acceptance.py", "before = targets.following_ids[:, head]",
          "before = targets.following_ids[:, 0]", "calibration/test_positional_acceptance.py"),
    Fault("proposer/draft_model.py", "min(agreed, self.model.length(context.row))",
          "self.model.length(context.row)", "proposer decoding"),
    # Drafts of another tokenizer.
    Fault("proposer/draft_tokens.py", "found = logits.new_full(shape, float(\"-inf\"))",
          "found = logits.new_full(shape, 0.0)", "proposer/test_draft_tokens.py"),
    Fault("proposer/draft_tokens.py", "return self._table[token_ids]", "return token_ids * 0",
          "proposer/test_draft_tokens.py"),
    Fault("proposer/draft_tokens.py", "if token_ids[n] != row.cells[n]), max(most, 0))",
          "if False), max(most, 0))", "proposer/test_draft_tokens.py"),
    Fault("proposer/draft_tokens.py", "row.text.num_read >= len(context.token_ids)", "False",
          "proposer/test_draft_tokens.py"),
    Fault("proposer/draft_model.py", "self._drop(contexts)  # other", "# other",
          "proposer/test_draft_tokens.py"),
    Fault("proposer/draft_tokens.py", "draw: Draw | None = Draw.DETERMINISTIC",
          "draw: Draw | None = Draw.SINGLE", "proposer/test_draft_tokens.py"),
    Fault("lm/respelled.py", "kept = sum(end <= meeting for end in self._ends)",
          "kept = sum(end < meeting for end in self._ends)", "lm/test_respelled.py"),
    Fault("lm/respelled.py", "del self.token_ids[self._first + len(self._ends) :]", "pass",
          "lm/test_respelled.py"),
    Fault("lm/token_bytes.py", "ends[0] = 0", "pass", "lm/test_token_bytes.py"),
    # Replay.
    Fault("replaying/survival.py", "values[:, depth - 1 :]", "values[:, depth - 1 :].roll(1, 1)",
          "replaying"),
    Fault("calibration/best_tree.py", "distributions.first_start(text)] = BEHIND_ALL",
          "0] = BEHIND_ALL",
          "calibration"),
    Fault("recording/pit_values.py", "/ probs.sum(dim=1)\n", "\n", "recording metrics"),
    Fault("replaying/redraft.py", 'stream("replay", *purpose)', "stream(*purpose)",
          "replaying/test_redraft.py"),
    Fault("replaying/expected_steps.py", "* tested * (part.limits >= d)", "* (part.limits >= d)",
          "replaying/test_every_column.py"),
    Fault("replaying/expected_steps.py", "sizes = sizes - _at_depth(of_step.left_out, depths)", "",
          "replaying/test_every_column.py"),
    Fault("replaying/expected_steps.py", "[[len(text.prompt_ids) - 1]", "[[len(text.prompt_ids)]",
          "replaying/test_expected_steps.py"),
    Fault("replaying/costs.py", "costs.along(draft, shape, contexts[some])",
          "costs.along(draft, shape, contexts[:1].repeat(len(some)))", "replaying/test_costs.py"),
    Fault("replaying/cost_fitting.py", "expected = surface.at(number, context)",
          "expected = surface.at(number, 0)", "replaying/test_costs.py"),
    Fault("lm/accounting.py", "    model.tie_weights()\n", "", "lm/test_accounting.py"),
    Fault("lm/accounting.py", "    _keep_in_float32(model, dtype)\n    return", "    return",
          "lm/test_accounting.py"),
    Fault("lm/operations.py", "num_new * (num_new + 1) // 2", "num_new * num_new",
          "lm/test_operations.py"),
    Fault("lm/traffic.py", "tables -= {id(each) for each in head.parameters()}", "pass",
          "lab/test_forward_timing.py"),
    Fault("lab/costs/forward_timing.py", "model.keep(row, shape.context)", "pass",
          "lab/test_forward_timing.py"),
    # Mixtures of experts.
    Fault("decoding/experts.py", "row[: len(each.tree.token_ids)]", "row",
          "decoding/test_experts.py"),
    Fault("decoding/experts.py", "verdict.path[: step.accepted]", "verdict.path[:1]",
          "decoding/test_experts.py"),
    Fault("lm/routing.py", "marks[:, :num_experts]", "marks", "lm/test_routing.py"),
    Fault("lm/routing.py", "permute(1, 2, 0, 3)", "permute(1, 2, 0, 3).flip(2)",
          "lm/test_routing.py"),
    Fault("lm/traffic.py", r'"(^|\.)experts\."', r'"experts\."', "lab/test_forward_timing.py"),
    Fault("lab/costs/candidates.py", "piece(root - context, context)", "piece(root, context)",
          "lab/test_forward_timing.py"),
    Fault("results/token_view.py", "step.routes[depth:]", "step.routes[depth - 1 :]",
          "results/test_token_view.py"),
    Fault("training/balance.py", "torch.stack(layers).mean()", "torch.stack(layers).min()",
          "training/test_mixtures.py"),
    Fault("replaying/submitted.py", "if known.ends and len(path) > 1", "if False",
          "replaying/test_every_column.py"),
    Fault("replaying/submitted.py", "if len(path) == depth]).amax(",
          "if len(path) == depth]).amin(",
          "replaying/test_every_column.py"),
    Fault("replaying/submitted.py", "sure * (1 - known.stuck)", "sure",
          "replaying/test_every_column.py"),
    Fault("verification/rejection_form.py", "c * (below[1] - q * is_end)", "c * below[1]",
          "replaying/test_every_column.py"),
    Fault("verification/ends.py", "lost = lost * rejected", "lost = lost * drawn",
          "replaying/test_every_column.py"),
    Fault("verification/ends.py", "is_end.gather(1, top) | (mass <= 0)", "is_end.gather(1, top)",
          "replaying/test_every_column.py"),
    Fault("replaying/stops.py", "if tail.endswith(BROKEN) and not", "if False and not",
          "replaying/test_stops.py"),
    Fault("replaying/stops.py", "for cut in range(1, len(string))", "for cut in range(1, 2)",
          "replaying/test_stops.py"),
    Fault("replaying/stops.py", "self._holding(self._alone)", "self._holding(self._behind)",
          "replaying/test_stops.py"),
    Fault("verification/block.py", "clipped = (clipped - log_ratio).clamp(max=0)",
          "clipped = clipped - log_ratio", "replaying/test_every_column.py"),
    Fault("verification/block.py", "ratio(excess, excess + withheld)", "ratio(excess, excess)",
          "replaying/test_every_column.py"),
    Fault("calibration/best_tree.py", "sampling, logits, number)", "sampling, logits, 1)",
          "calibration/test_best_tree.py"),
    Fault("calibration/ranks.py", "verifier.unembed), verifier.vocab_size",
          "verifier.unembed), heads.vocab_size", "calibration/test_ranks.py"),
    Fault("recording/scoring.py", "text.output_ids, logits, piece.start)",
          "text.output_ids, logits, 0)", "recording/test_recording_folder.py"),
    Fault("recording/pit_values.py", "text.output_ids, logits, piece.start)",
          "text.output_ids, logits, 0)", "recording/test_pit_values.py"),
    Fault("verification/verdicts.py", "ROOT and count > 1", "ROOT and count > 2",
          "replaying/test_every_field.py"),
    Fault("verification/verdicts.py", "on_device(some.counts,", "on_device([4] * len(places),",
          "verification/test_estimators.py"),
    Fault("verification/last_token.py", "[count] for count in counts", "[0] for count in counts",
          "verification/test_batches.py"),
    Fault("verification/each_token.py", "numbers[owner, node : node + 1]", "numbers[owner, :1]",
          "verification/test_batches.py"),
    Fault("core/verified.py", "if len(draws) <= 1:", "if True:",
          "verification/test_batches.py"),
    Fault("runtime/compiled_function.py", "self._seen.setdefault(ones, set())",
          "self._seen.setdefault((), set())", "runtime/test_compiled_function.py"),
    Fault("metrics/columns.py", "step.drafted != step.depth", "step.drafted > step.depth + 1",
          "replaying/test_every_field.py"),
    Fault("verification/single_draw.py", "accepted + nodes.of_text(missing) * rejected", "accepted",
          "replaying/test_every_column.py"),
    Fault("verification/without_replacement.py", "others = beside + q.gather(1, likeliest) - q",
          "return 1 - q", "replaying/test_closed_forms.py"),
    # Training.
    Fault("training/step_loss.py", "self._decay**depth", "self._decay**0", "training"),
    Fault("training/checkpoints.py", '"; ".join(changed(path, note["files"])) or None', "None",
          "training"),
    Fault("training/record.py", "        if differing:", "        if False:", "training"),
    Fault("training/training_run.py", "loss * len(batches) * ", "loss * ", "training"),
    # Identities, and what was whole.
    Fault("core/digest.py", 'hashlib.file_digest(content, "sha256")',
          "hashlib.sha256(content.read(1 << 20))", "core"),
    Fault("results/options.py", "if not is_known(name, heeded, files)", "if True",
          "lm/test_revision.py"),
    Fault("core/digest.py", "known.st_size, known.st_mtime_ns, known.st_ctime_ns,",
          "known.st_size, 0, 0,", "core"),
    Fault("core/jsonl.py", "row[SEAL] != _checksum(plain)", "not row", "report results command"),
    Fault("metrics/estimate.py", "rng.integers(0, max(num_prompts, 1), size=shape)",
          "rng.integers(0, max(num_prompts // 2, 1), size=shape)", "metrics"),
)  # fmt: skip


def noticed(fault: Fault, copy: Path) -> str:
    """Return the first test that fails with the fault, or "" if all pass."""
    file = copy / "specdec" / fault.file
    source = file.read_text(encoding="utf-8")
    assert source.count(fault.old) == 1, f"{fault.name}: found {source.count(fault.old)} times"
    file.write_text(source.replace(fault.old, fault.new), encoding="utf-8")
    tests = [f"tests/{name}" for name in fault.tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "-m", "not slow", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
    finally:
        file.write_text(source, encoding="utf-8")
    failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    # Two processes that stop at the first failure end as if they were interrupted: 2.
    assert ended.returncode == 0 or failed, ended.stdout + ended.stderr
    return failed[0].split(" ")[1] if failed else ""


def main() -> int:
    """Plant each fault by itself; the exit code says whether all were noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults whose line or file holds this")
    options = parser.parse_args()
    unseen: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        chosen = [fault for fault in FAULTS if options.only in fault.name]
        for fault in chosen:
            by = noticed(fault, copy)
            print(f"{fault.name}\n    {by or 'NOT NOTICED'}", flush=True)
            unseen += [] if by else [fault.name]
    print(f"{len(chosen)} faults, {len(unseen)} not noticed")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
