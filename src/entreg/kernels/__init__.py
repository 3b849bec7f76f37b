"""How `functional/tokens.py` is computed: per-token sums over a large vocabulary, and the gradient they ask for. Orders and floats, never a Family.

**The seam.** A backend is two functions; `blocks` is one, and everything else (`rows`, `autograd`, `truncation`, `parallel`, `head`) is shared:

    sums(operands, spec)                       -> Parts     one streaming pass over the logits: sums of each row relative to its maximum, [N, 1] each
    gradient(operands, spec, slopes, out)                   a second pass: the derivative with respect to the logits, written to `out`

`Operands` are tensors (logits [N, V], one scale a row, support, cut), `Spec` what is the same for all rows (order, flags, soft-cap): hashable, so compiled code
is kept by it. `out` may be the logits themselves: a kernel reads an entry before it overwrites it. `rows.merge` joins the sums of blocks, of vocabulary shards
and of ranks by one rule, `rows.finish` makes statistics of them and `rows.slopes` turns incoming gradients into at most seven numbers a row, so that a backend
knows one formula:

    dz_i = p_i (A + B l_i + C l_i^2 + D p_i) + kept_i k(l_i),     k by order: p (E + F l),  F p expm1(e (l + E)),  E p - F exp(a l + G),  E p - F [y = 0]

with `y = (z - m) scale`, `l = y - log s`, `p = exp(l)`. The target's entry is written afterwards by `rows.at_target`, in full precision.
"""
