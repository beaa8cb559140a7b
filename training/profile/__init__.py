"""What users' histories and reviews say of them, in counts and words. No TensorFlow in it."""

from __future__ import annotations

from training.profile.user_profile import (
    TITLE_WORDS,
    USUAL_NUMBERS,
    USUAL_TRAITS,
    NumberBand,
    Quotation,
    Term,
    Trait,
    UserProfile,
    UserProfiles,
)

__all__ = [
    "TITLE_WORDS",
    "USUAL_NUMBERS",
    "USUAL_TRAITS",
    "NumberBand",
    "Quotation",
    "Term",
    "Trait",
    "UserProfile",
    "UserProfiles",
]
