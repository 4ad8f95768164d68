"""The README of a folder of heads, or of an exit, on disk and on the Hub."""

CARD = """---
{{ card_data }}
---

# {{ kind }} for `{{ verifier.path }}`

{{ summary }}, for
speculative decoding. Worth nothing on any other model: the verifier that this was trained on has
these digests, and another one is refused.

| verifier | commit | dtype | config | tokenizer | weights |
|---|---|---|---|---|---|
| `{{ verifier.path }}` | {{ verifier.commit or "-" }} | {{ verifier.dtype }} \
| {{ verifier.config }} | {{ verifier.tokenizer }} \
| {{ verifier.weights }} |

| option | value |
|---|---|
{% for name, value in options.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% if training %}
| training | |
|---|---|
{% for name, value in training.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}
## Use

With [specdec-lab](https://pypi.org/project/specdec-lab), in this folder:

```
specdec-decode verifier.path={{ verifier.path }} {% if verifier.commit %}verifier.revision=\
{{ verifier.commit }} {% endif %}proposer={{ proposer }} proposer.path=. tree=sparse
```

The text keeps exactly the verifier's distribution, whatever is proposed.
"""
