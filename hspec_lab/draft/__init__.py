"""Drafters: they propose trees to a verifier and are told what became of them.

n_tokens                    how much of the verifier's text the drafter knows
extend(tokens, features)    more text; `features` fp32 [m, hidden] are the verifier's, each
                            the one that led to its token (the very first token has none)
rollback(n_tokens)          the text was cut
prepare()                   ingest what is known; called once, behind the prompt
propose() -> Proposal       a tree whose root is the last token of the text
"""

from hspec_lab.draft.eagle2 import Eagle2Drafter
from hspec_lab.draft.refine import RefineDrafter

__all__ = ["Eagle2Drafter", "RefineDrafter"]
