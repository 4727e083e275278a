"""Names of plugins: ours from a table, others' from distributions that are really on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmaas_tune.errors import InputError
from lmaas_tune.optimizers import describe_optimizer, make_optimizer, optimizer_names
from lmaas_tune.registry import BACKENDS, Registry, backend_names, load_backend

OPTIMIZER = '''
import numpy as np

class Walk:
    """A walk."""

    def __init__(self, dim, *, seed, calls=None, step=1.0):
        self.population, self.dim, self.step = 3, dim, step

    def ask(self):
        return np.full((3, self.dim), self.step)

    def tell(self, points, losses, /):
        pass
'''


class Site:
    """A folder on the import path into which distributions are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, *, module: str, source: str, points: str) -> None:
        """Write a module and the metadata that an installer would leave."""
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path)
    return Site(tmp_path)


def test_an_installed_distribution_adds_an_optimizer(site: Site) -> None:
    site.install(
        "walks",
        module="walks_plugin",
        source=OPTIMIZER,
        points="[lmaas_tune.optimizers]\nwalk = walks_plugin:Walk\n",
    )

    assert "walk" in optimizer_names()
    assert describe_optimizer("walk") == "walks_plugin:Walk, from walks"
    assert "walks_plugin" not in sys.modules, "listing a plugin must not import it"
    built = make_optimizer("walk", 2, seed=0, options={"step": 2.0})
    np.testing.assert_array_equal(built.ask(), np.full((3, 2), 2.0))


def test_options_of_a_plugin_are_checked_by_name(site: Site) -> None:
    site.install(
        "walks-too",
        module="walks_too_plugin",
        source=OPTIMIZER,
        points="[lmaas_tune.optimizers]\nwalk = walks_too_plugin:Walk\n",
    )
    with pytest.raises(InputError, match=r"'walk' has no option 'stepp'; did you mean 'step'\?"):
        make_optimizer("walk", 2, seed=0, options={"stepp": 2.0})


def test_our_own_backend_comes_through_the_same_door() -> None:
    assert "hf" in backend_names()
    assert BACKENDS.entry("hf").distribution == "lmaas-tune"


def test_an_installed_distribution_adds_a_backend(site: Site) -> None:
    site.install(
        "toys",
        module="toys_plugin",
        source="from lmaas_tune.testing import ToyBackend\n",
        points="[lmaas_tune.backends]\nanother-toy = toys_plugin:ToyBackend\n",
    )
    assert "another-toy" in backend_names()
    assert load_backend("another-toy")(width=8).identity.startswith("toy width=8")


def test_an_unknown_name_gets_a_did_you_mean() -> None:
    with pytest.raises(InputError, match=r"unknown optimizer 'randm'; did you mean 'random'"):
        make_optimizer("randm", 2, seed=0)
    with pytest.raises(InputError, match=r"unknown backend 'fh'.*'lmaas_tune.backends'"):
        load_backend("fh")


def test_two_offers_of_a_name_are_an_error_that_names_both(site: Site) -> None:
    for owner in ("first-owner", "second-owner"):
        module = owner.replace("-", "_")
        site.install(
            owner,
            module=module,
            source="Toy = int\n",
            points=f"[lmaas_tune.backends]\ntwice = {module}:Toy\nonly-{owner} = {module}:Toy\n",
        )
    with pytest.raises(InputError, match=r"'twice' is offered by .*: uninstall") as caught:
        load_backend("twice")
    assert "'first-owner'" in str(caught.value)
    assert "'second-owner'" in str(caught.value)
    assert BACKENDS.describe("twice") == str(caught.value)
    assert load_backend("only-first-owner") is int, "one clash spoils no other name"


def test_an_offer_of_one_of_our_names_is_an_error_that_names_both(site: Site) -> None:
    site.install(
        "impostor",
        module="impostor",
        source=OPTIMIZER,
        points="[lmaas_tune.optimizers]\ncma = impostor:Walk\n",
    )
    with pytest.raises(InputError, match=r"'cma' is offered by 'lmaas-tune' and 'impostor'"):
        make_optimizer("cma", 2, seed=0)


@pytest.mark.parametrize(
    ("source", "target", "cause"),
    [
        ("import no_such_package\n", "broken_plugin:Toy", "No module named 'no_such_package'"),
        ("raise RuntimeError('no licence')\n", "broken_plugin:Toy", "RuntimeError: no licence"),
        ("Toy = int\n", "broken_plugin:Toi", "has no attribute 'Toi'"),
    ],
)
def test_a_plugin_whose_import_fails_is_named_with_the_cause(
    site: Site, monkeypatch: pytest.MonkeyPatch, source: str, target: str, cause: str
) -> None:
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    site.install(
        "broken-plugin",
        module="broken_plugin",
        source=source,
        points=f"[lmaas_tune.backends]\nbroken = {target}\n",
    )
    with pytest.raises(InputError) as caught:
        load_backend("broken")
    assert cause in str(caught.value)
    assert "'broken-plugin'" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)


def test_a_plugin_that_is_no_factory_is_refused(site: Site) -> None:
    site.install(
        "constants",
        module="constants_plugin",
        source="NUMBER = 3\n",
        points="[lmaas_tune.backends]\nnumber = constants_plugin:NUMBER\n"
        "[lmaas_tune.optimizers]\nnumber = constants_plugin:NUMBER\n",
    )
    with pytest.raises(InputError, match="is a int and not a class or function"):
        load_backend("number")
    with pytest.raises(InputError, match="is a int and not a class or function"):
        make_optimizer("number", 2, seed=0)


def test_an_input_error_of_a_plugin_passes_as_it_is(site: Site) -> None:
    site.install(
        "extras",
        module="extras_plugin",
        source="from lmaas_tune.errors import MissingExtraError\n"
        "raise MissingExtraError('the backend extra', package='torch', extra='hf')\n",
        points="[lmaas_tune.backends]\nextra = extras_plugin:Toy\n",
    )
    with pytest.raises(InputError, match=r"^the backend extra needs the package 'torch'"):
        load_backend("extra")


def test_names_of_the_table_come_first() -> None:
    registry = Registry("thing", group="lmaas_tune.nothing", builtin={"b": "x:B", "a": "x:A"})
    assert registry.names() == ("b", "a")


def test_listing_the_optimizers_imports_nothing_heavy() -> None:
    code = (
        "import sys; from lmaas_tune.optimizers import *; "
        "lines = [describe_optimizer(name) for name in optimizer_names()]; "
        "assert all(lines) and len(set(lines)) == len(lines), lines; "
        "print(sorted({'cma', 'nevergrad', 'scipy', 'tqdm', 'pytest'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
