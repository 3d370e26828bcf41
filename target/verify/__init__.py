"""The verifier: a program is refused unless it computes its op, for the rows it is bound to."""

from __future__ import annotations

from sparqle_tvm.target.verify.verify import verify, verify_bound

__all__ = ["verify", "verify_bound"]
