"""`cowtree policy` and `cowtree tidy`: which snapshots of a domain are kept, and doing away with the others.

They are called as cowtree's own verbs are, not as virsh's: virsh has none like them.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowtree.cli import options
from cowtree.cli.tree import printable
from cowtree.errors import CowtreeError, Refused, WrongUse

if TYPE_CHECKING:
    from cowtree.catalog.domains import Domain
    from cowtree.catalog.policies import Policy
    from cowtree.operations.host import Host
    from cowtree.operations.retention import Tidied

SET, SHOW, REMOVE = ACTIONS = ("set", "show", "remove")
DEPTH_MAX = 256
RULE = (
    "24h keeps the newest snapshot of each of the last 24 hours in which there is one; d, w, m and y mean days, weeks, "
    "months and years of local time, and 5last keeps the newest five; parts are joined by colons"
)


@contextmanager
def _open(arguments: argparse.Namespace) -> Iterator["Host"]:
    """The host. Raises: CatalogError."""
    from cowtree.catalog.store import open_catalog  # noqa: PLC0415  help needs no database
    from cowtree.cli.domain.host import warn  # noqa: PLC0415
    from cowtree.operations.host import Host  # noqa: PLC0415
    from cowtree.storage.file import LocalFiles  # noqa: PLC0415

    with open_catalog(arguments.catalog, creates=False) as catalog:
        yield Host(LocalFiles(), catalog, warn)


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb `policy`."""
    parser = verbs.add_parser(
        "policy",
        help="say which snapshots of a domain are kept, and how deep its chains may be",
        description="set gives a domain a policy, in place of the one that it had; show prints it, or those of all "
        "domains; remove takes it away. Nothing is deleted by it: cowtree tidy does that.",
        epilog=f"The rule: {RULE}. A snapshot stays when any part of the rule keeps it.",
    )
    parser.add_argument("action", choices=ACTIONS, metavar="set|show|remove", help="what to do")
    parser.add_argument("domain", nargs="?", metavar="DOMAIN", help="the name of a domain, or its uuid")
    parser.add_argument("--keep", metavar="RULE", help="set: which snapshots are kept, such as 24h:7d:4w; else all")
    parser.add_argument("--max-depth", metavar="N", type=int, help="set: of how many images a chain may consist")
    options.add_output(parser)
    options.add_catalog(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Change a policy, or print some."""
    from cowtree.catalog import domains, policies  # noqa: PLC0415

    _refuse_words(arguments)
    with _open(arguments) as host:
        if arguments.action == SHOW:
            chosen = [domains.find(host.catalog, arguments.domain)] if arguments.domain else []
            _show(host, chosen or domains.everyone(host.catalog), is_json=arguments.output == "json")
            return 0
        domain = domains.find(host.catalog, arguments.domain)
        if arguments.action == SET:
            policies.put(host.catalog, domain, policies.Policy(arguments.keep or "", arguments.max_depth))
        elif not policies.remove(host.catalog, domain):
            raise _no_policy(domain)
    return 0


def _refuse_words(arguments: argparse.Namespace) -> None:
    """Raises: WrongUse for words that make no sense together."""
    from cowtree.catalog import keep  # noqa: PLC0415

    hint = "cowtree policy --help"
    has_terms = (arguments.keep, arguments.max_depth) != (None, None)
    if arguments.action != SHOW and arguments.domain is None:
        raise WrongUse(reason=f"{arguments.action} needs a domain", hint=hint)
    if arguments.action != SET and has_terms:
        raise WrongUse(reason=f"{arguments.action} takes no --keep and no --max-depth", hint=hint)
    if arguments.action == SET and not has_terms:
        raise WrongUse(reason="set needs --keep or --max-depth, or both", hint=hint)
    if arguments.keep is not None:
        keep.parse(arguments.keep)
    if arguments.max_depth is not None and not 1 <= arguments.max_depth <= DEPTH_MAX:
        raise WrongUse(reason=f"a chain consists of 1 to {DEPTH_MAX} images, not of {arguments.max_depth}", hint=hint)


def _no_policy(domain: "Domain") -> Refused:
    hint = f"cowtree policy set {domain.name} --keep 24h:7d:4w"
    return Refused(reason=f"domain '{domain.name}' has no policy", hint=hint)


def _show(host: "Host", chosen: "list[Domain]", *, is_json: bool) -> None:
    from cowtree.catalog import policies  # noqa: PLC0415

    found = [(domain, policy) for domain in chosen if (policy := policies.find(host.catalog, domain)) is not None]
    if is_json:
        print(json.dumps([{"domain": domain.name, **policy._asdict()} for domain, policy in found], indent=4))
        return
    for domain, policy in found:
        print(printable(f"{domain.name}: {_spell(policy)}"))


def _spell(policy: "Policy") -> str:
    """A policy in the words that set it."""
    words = [f"--keep {policy.keep}"] if policy.keep else []
    words += [] if policy.max_depth is None else [f"--max-depth {policy.max_depth}"]
    return " ".join(words)


class Tidying:
    """The verb `tidy`."""

    def add_parser(self, verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Declare the verb."""
        parser = verbs.add_parser(
            "tidy",
            help="delete the snapshots that a domain's policy does not keep, and shorten its chains",
            description="Says of each snapshot whether it goes or stays, and why; deletes those that go as "
            "snapshot-delete does, and then merges images that nobody needs in chains that are too deep. Only what "
            "cowtree made goes: never the current snapshot, and none whose deletion others would notice. No guest "
            "sees a change.",
            epilog="Without a name all domains are tidied that have a policy: see cowtree policy. A domain that cannot "
            "be tidied is told of on standard error, and its exit status is that of the command.",
        )
        parser.add_argument("domains", nargs="*", metavar="DOMAIN", help="domains that have a policy")
        parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and do nothing")
        options.add_output(parser)
        options.add_catalog(parser)
        parser.set_defaults(run=self.run)

    def run(self, arguments: argparse.Namespace) -> int:
        """Tidy all up, one domain after the other."""
        from cowtree.catalog import domains, policies  # noqa: PLC0415

        done, status = [], 0
        is_json = arguments.output == "json"
        with _open(arguments) as host:
            names = arguments.domains or [
                each.name for each in domains.everyone(host.catalog) if policies.find(host.catalog, each)
            ]
            for name in names:
                try:
                    done.append(_tidy(host, name, is_trial=arguments.dry_run))
                except CowtreeError as error:
                    sys.stdout.flush()
                    print(f"cowtree: {printable(str(error))}", file=sys.stderr)
                    status = status or error.exit_status
                    continue
                if not is_json:
                    _tell(done[-1], is_trial=arguments.dry_run)
        if is_json:
            print(json.dumps([_described(each) for each in done], indent=4))
        elif not names:
            print("no domain has a policy: cowtree policy set DOMAIN --keep 24h:7d:4w")
        return status


def _tidy(host: "Host", name: str, *, is_trial: bool) -> "Tidied":
    """Raises: Refused when the domain has no policy, and what `tidy` raises."""
    from cowtree.catalog import domains, policies  # noqa: PLC0415
    from cowtree.operations.host import subject  # noqa: PLC0415
    from cowtree.operations.retention import tidy  # noqa: PLC0415
    from cowtree.operations.work import at_work  # noqa: PLC0415

    domain = domains.find(host.catalog, name)
    policy = policies.find(host.catalog, domain)
    if policy is None:
        raise _no_policy(domain)
    if is_trial:
        return tidy(host, subject(host, domain), policy, is_trial=True)
    with at_work(host, name) as found:
        return tidy(host, found, policy)


def _tell(tidied: "Tidied", *, is_trial: bool) -> None:
    for each in tidied.verdicts:
        fate = "stays" if not each.goes else "would be deleted" if is_trial else "is deleted"
        print(printable(f"domain '{tidied.domain}': snapshot '{each.snapshot}' {fate}: {each.reason}"))
    for chain in tidied.chains:
        depth = f"{chain.depth} images deep"
        if chain.depth_after != chain.depth:
            depth += f", {'would be' if is_trial else 'is now'} {chain.depth_after}"
        print(printable(f"domain '{tidied.domain}': disk {chain.target} is {depth}: {chain.reason}"))


def _described(tidied: "Tidied") -> dict[str, object]:
    return {
        "domain": tidied.domain,
        "snapshots": [each._asdict() for each in tidied.verdicts],
        "chains": [each._asdict() for each in tidied.chains],
    }
