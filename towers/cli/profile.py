"""``towers profile``: a readable summary of users, from the data alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towers.cli.histories import histories_option, read_histories
from towers.cli.output import emit, json_option, say
from towers.errors import InputError

if TYPE_CHECKING:
    from training.profile import NumberBand, Term, Trait, UserProfile, UserProfiles

_TRAITS_SHOWN = 3


@click.command("profile", short_help="Say what histories and reviews tell of a user.")
@click.argument("item_ids", nargs=-1)
@click.option("--catalog", required=True, type=click.Path(), help="Products; see docs/data.md.")
@histories_option("What users took, oldest first; see docs/data.md.")
@click.option("--reviews", type=click.Path(), help="What users wrote of items; see docs/data.md.")
@click.option(
    "--user", "users", multiple=True, help="User to summarise; repeatable. All if absent."
)
@click.option(
    "--categorical",
    multiple=True,
    metavar="COLUMN",
    help="Column to count values of; repeatable.  [default: category and brand]",
)
@click.option(
    "--numeric",
    multiple=True,
    metavar="COLUMN",
    help="Column of numbers to take quartiles of; repeatable.  [default: price]",
)
@click.option(
    "--against",
    type=click.Choice(("catalog", "users")),
    default="catalog",
    show_default=True,
    help="What a user's items stand out against: all items, or those that other users took.",
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Of each list.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the profiles to this file, one JSON object a line.",
)
@json_option
def command(
    item_ids: tuple[str, ...],
    catalog: str,
    histories: str | None,
    reviews: str | None,
    users: tuple[str, ...],
    categorical: tuple[str, ...],
    numeric: tuple[str, ...],
    against: str,
    top: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Say what histories and reviews tell of users, or what a history of ITEM_IDS tells.

    Categories, brands and words of titles with how much they stand out, prices, and what the user
    wrote of what was liked and disliked, each with its evidence. Nothing is trained and no model is
    needed: docs/profile.md.
    """
    from training.catalog import Catalog
    from training.profile import USUAL_NUMBERS, USUAL_TRAITS, UserProfiles
    from training.reviews import Reviews

    if item_ids and users:
        raise click.UsageError("give either ITEM_IDS or --user")
    if histories is None and reviews is None and not item_ids:
        raise click.UsageError("give --histories, --reviews or both, or ITEM_IDS of one history")
    products = Catalog.read(catalog)
    taken = None if histories is None else read_histories(histories, products, strict=False)
    written = None if reviews is None else Reviews.read(reviews, products)
    if written is not None:
        say(f"{len(written):,} reviews")
        if written.unknown_items.rows:
            say(f"reviews of items that the catalogue lacks: {written.unknown_items.rows:,}")
        if unsigned := sum(user is None for user in written.users):
            say(f"reviews without a user: {unsigned:,}")
    usual = ([] if categorical else [*USUAL_TRAITS]) + ([] if numeric else [*USUAL_NUMBERS])
    for name in usual:
        if name not in products.table.column_names:
            say(f"the catalogue has no column {name}")
    profiles = UserProfiles(
        products,
        taken,
        written,
        categorical=categorical or None,
        numeric=numeric or None,
        against=against,  # type: ignore[arg-type]  # click knows the choices
        top=top,
    )
    if item_ids:
        chosen: Iterable[UserProfile] = [profiles.of_items(item_ids)]
    else:
        chosen = _of_users(profiles, users, output is not None or as_json)
    if output is not None:
        count = _write(chosen, output)
        facts = {"profiles": count, "output": str(output)}
        emit(facts, as_json, lambda: f"{count:,} profiles in {output}")
        return
    found = list(chosen)
    facts = {"against": against, "profiles": [profile.as_dict() for profile in found]}
    emit(facts, as_json, lambda: "\n\n".join(map(profile_text, found)))


def _of_users(profiles: UserProfiles, users: tuple[str, ...], many: bool) -> Iterable[UserProfile]:
    if not users and not many and len(profiles.users) > 1:
        raise InputError(
            f"there are {len(profiles.users):,} users: name some with --user, or write all to a "
            "file with --output"
        )
    known = set(profiles.users)
    if unknown := [user for user in users if user not in known]:
        say(f"users that the data do not know: {len(unknown)} ({', '.join(unknown[:10])})")
    return map(profiles.of, dict.fromkeys(users or profiles.users))


def _write(profiles: Iterable[UserProfile], output: Path) -> int:
    from training.atomic_file import atomic_file

    count = 0
    with atomic_file(output) as partial, partial.open("w", encoding="utf-8") as file:
        for profile in profiles:
            file.write(json.dumps(profile.as_dict(), ensure_ascii=False) + "\n")
            count += 1
    return count


def profile_text(profile: UserProfile) -> str:
    """A profile for people."""
    from training.profile import TITLE_WORDS

    lines = ["These items" if profile.user is None else f"User {profile.user}"]
    if profile.unknown_items:
        lines.append(f"  {profile.unknown_items} items are not in the catalogue")
    if not profile.items and not profile.reviews:
        return "\n".join([*lines, "  nothing is known"])
    lines.append(f"  {_counts(profile)}")
    if profile.newest:
        lines.append(f"  {'newest':<12}{'; '.join(profile.newest)}")
    for name, traits in profile.traits.items():
        # Of single words most are chance.
        shown = [one for one in traits if one.stands_out or name != TITLE_WORDS][:_TRAITS_SHOWN]
        lines += _block(name, [_trait(one) for one in shown])
    for name, band in profile.numbers.items():
        lines += _block(name, [_band(band)])
    lines += _block("liked", _terms(profile.liked))
    lines += _block("disliked", _terms(profile.disliked))
    return "\n".join(lines)


def _counts(profile: UserProfile) -> str:
    text = f"{profile.items} items"
    if profile.events:
        text += f", {profile.events} events"
    if profile.first is not None:
        text += f" from {profile.first[:10]} to {str(profile.last)[:10]}"
    if profile.reviews:
        text += f", {profile.reviews} reviews"
        if profile.unrated:
            text += f" ({profile.unrated} without a rating, not looked at)"
    return text


def _block(name: str, lines: list[str]) -> list[str]:
    """Lines under one name, which stands before the first of them."""
    return [f"  {name if not place else '':<12}{line}" for place, line in enumerate(lines)]


def _trait(trait: Trait) -> str:
    counts = f"{trait.value}: {trait.items} of {trait.of_items}"
    if not trait.stands_out:
        return f"{counts} (may be chance)"
    return f"{counts}, {trait.lift:.1f} times as often as elsewhere (at least {trait.lift_low:.1f})"


def _band(band: NumberBand) -> str:
    bad = f"; {band.not_numbers} values of the catalogue are no numbers" if band.not_numbers else ""
    if band.catalog_median is None:
        return f"unknown: no item has one{bad}"
    elsewhere = (
        f"catalogue {band.catalog_low:g} to {band.catalog_high:g}, "
        f"median {band.catalog_median:g}{bad}"
    )
    if band.median is None:
        return f"unknown for these items ({elsewhere})"
    return f"{band.low:g} to {band.high:g}, median {band.median:g} ({elsewhere})"


def _terms(terms: list[Term]) -> list[str]:
    """Words with the sentence they are from; words of one sentence on one line."""
    by_quotation: dict[tuple[str, str | None, float], list[str]] = {}
    for term in terms:
        first = term.quotations[0]
        key = (first.text, first.item_id, first.rating)
        count = f" ({term.reviews} reviews)" if term.reviews > 1 else ""
        by_quotation.setdefault(key, []).append(term.word + count)
    return [
        f'{", ".join(words)}: "{text}" {rating:g}/5, {item_id or "of an unknown item"}'
        for (text, item_id, rating), words in by_quotation.items()
    ]
