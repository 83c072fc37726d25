"""Workers that ask in the same moment: each trial gets a pair of its own, whoever is faster."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.integrations.transfer_pruner_optuna.storages import grpc_proxy, open_storage
from transfer_pruner import Decision, EliminationRule, LearningRule, PairParams, TransferPredictor
from transfer_pruner.pairs import ordered_pairs
from transfer_pruner_optuna import TransferSampler
from transfer_pruner_optuna._private import read_trials
from transfer_pruner_optuna.claims import CLAIM, claims_of
from transfer_pruner_optuna.history import History

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

TASKS = ["a", "b", "c", "d", "e", "f"]


def learning_rule() -> LearningRule:
    pairs = ordered_pairs(TASKS)
    pairs["attribution_score"] = pairs["source"].map(TASKS.index).astype(float)
    predictor = TransferPredictor(feature_columns=["attribution_score"])
    return LearningRule(predictor, pairs=pairs, start=0.0, min_probability=0.0)


RULE = learning_rule()


class Turns:
    """Lets threads take steps in a given order; who has nothing to do any more is passed over."""

    def __init__(self, order: list[int]) -> None:
        self._order = deque(order)
        self._done: set[int] = set()
        self._changed = threading.Condition()
        self.of: dict[int, int] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Wait for this thread's turn, and let nobody else take a step meanwhile."""
        worker = self.of.get(threading.get_ident())
        with self._changed:
            while worker is not None and self._order and self._order[0] != worker:
                if self._order[0] in self._done:
                    self._order.popleft()
                    continue
                self._changed.wait()
            if worker is not None and self._order:
                self._order.popleft()
            yield
            self._changed.notify_all()

    def end(self) -> None:
        """Say that this thread takes no more steps."""
        with self._changed:
            self._done.add(self.of[threading.get_ident()])
            self._changed.notify_all()


class SteppedStorage(InMemoryStorage):
    """Optuna's storage in memory, whose readers and writers come in a given order."""

    def __init__(self, order: list[int] | None = None) -> None:
        super().__init__()
        self.turns = Turns(order or [])
        self.claims: Counter[int] = Counter()
        self.reads = 0

    def get_all_trials(self, *given: Any, **more: Any) -> list[FrozenTrial]:
        with self.turns.step():
            self.reads += 1
            return super().get_all_trials(*given, **more)

    def set_trial_param(self, *given: Any, **more: Any) -> None:
        with self.turns.step():
            super().set_trial_param(*given, **more)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self.turns.step():
            self.claims[trial_id] += key == CLAIM
            super().set_trial_system_attr(trial_id, key, value)


def worker(
    storage: Any, base: BaseSampler | None = None, rule: Any = RULE, **more: Any
) -> optuna.Study:
    """Load the study as another process does: with a sampler that knows nothing of the others."""
    sampler = TransferSampler(rule, base or RandomSampler(seed=0), **more)
    return optuna.load_study(study_name="s", storage=storage, sampler=sampler)


def all_at_once(
    storage: SteppedStorage,
    studies: list[optuna.Study],
    suggest: Callable[[optuna.Trial], None],
) -> list[dict[str, Any]]:
    """Let every worker suggest one trial, in the storage's order of steps; give parameters."""
    trials: list[optuna.Trial | None] = [None] * len(studies)

    def work(number: int) -> None:
        storage.turns.of[threading.get_ident()] = number
        try:
            trials[number] = studies[number].ask()
            suggest(trials[number])  # type: ignore[arg-type]
        finally:
            storage.turns.end()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(studies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return [trial.params for trial in trials if trial is not None]


class Together(RandomSampler):
    """Proposes all parameters together: what a trial will be is known with its pair."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(self, study: Any, trial: Any, space: dict[str, Any]) -> dict[str, Any]:
        return {
            name: self.sample_independent(study, trial, name, space[name]) for name in sorted(space)
        }


def suggest_pair(trial: optuna.Trial) -> None:
    trial.suggest_categorical("source", TASKS)
    trial.suggest_categorical("target", TASKS)


@given(st.lists(st.integers(0, 2), max_size=60))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_whatever_order_three_workers_read_and_write_they_get_three_pairs(
    order: list[int],
) -> None:
    storage = SteppedStorage(order)
    optuna.create_study(study_name="s", storage=storage, direction="maximize")
    found = all_at_once(storage, [worker(storage) for _ in range(3)], suggest_pair)
    pairs = {(params["source"], params["target"]) for params in found}
    assert len(pairs) == 3
    # No more than the others are passed over: all of it is baselines still.
    assert pairs <= {(task, task) for task in TASKS[:5]}


def test_two_that_take_every_step_together_take_the_two_best() -> None:
    storage = SteppedStorage([0, 1] * 100)
    optuna.create_study(study_name="s", storage=storage, direction="maximize")
    found = all_at_once(storage, [worker(storage) for _ in range(2)], suggest_pair)
    assert sorted(params["source"] for params in found) == ["a", "b"]


@given(st.lists(st.integers(0, 1), max_size=40))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_who_has_to_share_a_pair_takes_other_hyperparameters(order: list[int]) -> None:
    def suggest(trial: optuna.Trial) -> None:
        trial.suggest_categorical("source", [None, "b"])
        trial.suggest_int("layers", 1, 3)

    storage = SteppedStorage(order)
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    space = {"source": CategoricalDistribution([None, "b"]), "layers": IntDistribution(1, 3)}
    for source, value in ((None, 0.5), ("b", 0.6)):
        params = {"source": source, "layers": 1}
        study.add_trial(
            optuna.create_trial(params=params, distributions=space, value=value)  # type: ignore[arg-type]
        )
    studies = [worker(storage, Together(seed=number), target="a") for number in range(2)]
    found = all_at_once(storage, studies, suggest)
    assert sorted((params["source"], params["layers"]) for params in found) == [("b", 2), ("b", 3)]


class Overtaken(SteppedStorage):
    """While the first claim is written, somebody begins and ends a trial of that pair."""

    overtake: Callable[[str | None, dict[str, str]], None] | None = None

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if key == CLAIM and self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            source, _, hyperparameters = value
            overtake(source, dict(hyperparameters))
        super().set_trial_system_attr(trial_id, key, value)


@pytest.mark.parametrize("base", [Together, RandomSampler])
def test_who_was_overtaken_by_a_trial_that_has_finished_chooses_anew(
    base: Callable[..., BaseSampler],
) -> None:
    storage = Overtaken()
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    sources = [None, "b", "c"]
    space = {"source": CategoricalDistribution(sources), "layers": IntDistribution(1, 2)}

    def finish(source: str | None, layers: int) -> None:
        params = {"source": source, "layers": layers}
        study.add_trial(
            optuna.create_trial(params=params, distributions=space, value=0.6)  # type: ignore[arg-type]
        )

    for source in sources:
        finish(source, 1)
    # One setting is left of every pair, and somebody takes it.
    storage.overtake = lambda source, _: finish(source, 2)
    trial = worker(storage, base(seed=0), target="a").ask()
    trial.suggest_categorical("source", sources)
    trial.suggest_int("layers", 1, 2)
    tried = [(other.params["source"], other.params["layers"]) for other in study.trials]
    assert len(set(tried)) == len(tried) == 5


def test_who_asks_alone_says_once_what_its_trial_will_be() -> None:
    storage = SteppedStorage()
    optuna.create_study(study_name="s", storage=storage, direction="maximize")
    study = worker(storage)
    for _ in range(8):
        trial = study.ask()
        suggest_pair(trial)
        trial.suggest_float("lr", 0, 1)
        study.tell(trial, 0.5)
    assert [*storage.claims.values()] == [1] * 8


@pytest.mark.parametrize(
    ("base", "more"),
    [
        # When it begins, when its pair is claimed, and when its hyperparameters are whole.
        (RandomSampler, 3),
        # Its first proposal is whole, and TPE takes what was read when the trial began.
        (TPESampler, 1),
    ],
)
def test_a_trial_reads_the_storage_no_more_often_than_it_has_to(
    base: type[BaseSampler], more: int
) -> None:
    def reads(wrapped: bool) -> int:
        storage = SteppedStorage()
        optuna.create_study(study_name="s", storage=storage, direction="maximize")
        sampler = base(**({"n_startup_trials": 1} if base is TPESampler else {}), seed=0)
        study = worker(storage, sampler)
        if not wrapped:
            study.sampler = sampler
        for _ in range(6):
            before = storage.reads
            trial = study.ask()
            suggest_pair(trial)
            trial.suggest_float("lr", 0, 1)
            trial.suggest_float("decay", 0, 1)
            study.tell(trial, 0.5)
        return storage.reads - before

    assert reads(wrapped=True) - reads(wrapped=False) == more


def test_settings_are_compared_as_soon_as_they_may_be_whole() -> None:
    history = History(PairParams())
    study = optuna.create_study()
    pair = {"source": "a", "target": "b"}
    choices = CategoricalDistribution(TASKS)
    space = dict.fromkeys(pair, choices) | {"lr": FloatDistribution(0, 1)}
    assert history.may_be_whole(pair), "nothing has finished"
    longer = space | {"decay": FloatDistribution(0, 1)}
    params = pair | {"lr": 0.5, "decay": 0.5}
    study.add_trial(create_trial(params=params, distributions=longer, value=0.5))
    history.update(study)
    assert not history.may_be_whole(pair | {"lr": 0.5})
    assert history.may_be_whole(params)
    assert history.may_be_whole(pair | {"layers": 2}), "a branch that is new"
    study.add_trial(create_trial(params=pair | {"lr": 0.1}, distributions=space, value=0.5))
    history.update(study)
    assert history.may_be_whole(pair | {"lr": 0.5}), "one branch has nothing else"


def test_what_was_read_before_is_never_newer_than_what_another_thread_has_read() -> None:
    study = optuna.create_study()
    history = History(PairParams())
    read_trials(study)
    other = optuna.load_study(study_name=study.study_name, storage=study._storage)
    other.add_trial(create_trial(params={}, distributions={}, value=0.5))
    history.update(other)
    history.update(study, anew=False)
    assert history._read == 1
    history.update(study)
    assert history._read == 1


@pytest.mark.parametrize("kind", ["sqlite", "journal", "grpc"])
def test_another_process_knows_a_pair_before_its_parameters_are_stored(
    kind: str, tmp_path: Path
) -> None:
    where = {"sqlite": f"sqlite:///{tmp_path}/s.db", "journal": f"{tmp_path}/s.log"}.get(kind)
    with (
        grpc_proxy(f"sqlite:///{tmp_path}/s.db")
        if where is None
        else contextmanager(iter)([where]) as place
    ):
        optuna.create_study(study_name="s", storage=open_storage(kind, place), direction="maximize")
        studies = [worker(open_storage(kind, place)) for _ in range(3)]
        trials = [study.ask() for study in studies]
        for trial in trials:
            trial.suggest_categorical("source", TASKS)
        for trial in trials:
            trial.suggest_categorical("target", TASKS)
    pairs = [(trial.params["source"], trial.params["target"]) for trial in trials]
    assert pairs == [("a", "a"), ("b", "b"), ("c", "c")]


def test_the_claim_of_a_worker_that_died_holds_nobody_up() -> None:
    storage = SteppedStorage()
    optuna.create_study(study_name="s", storage=storage, direction="maximize")
    # It has said what its first trial will be, and is gone before that is stored.
    dead = worker(storage).ask()
    dead.suggest_categorical("source", TASKS)
    study = worker(storage)
    trials = [study.ask() for _ in range(6)]
    for trial in trials:
        suggest_pair(trial)
    assert [trial.params["source"] for trial in trials[:5]] == TASKS[1:]
    assert trials[5].params["source"] != trials[5].params["target"]
    # The pair, and beside others that run the hyperparameters.
    assert set(storage.claims.values()) <= {1, 2}
    study.tell(dead.number, state=TrialState.FAIL)
    after = study.ask()
    suggest_pair(after)
    assert after.params == {"source": "a", "target": "a"}, "it counts for nothing any more"


def test_what_is_enqueued_is_known_before_it_is_suggested() -> None:
    storage = SteppedStorage()
    optuna.create_study(study_name="s", storage=storage, direction="maximize")
    first, second = worker(storage), worker(storage)
    first.enqueue_trial({"source": "a", "target": "a"})
    first.enqueue_trial({"source": "b", "target": "b"})
    running = first.ask()
    # One runs and has suggested nothing, one still waits; who begins now takes the third.
    asked = second.ask()
    assert asked.number == 1
    trial = worker(storage).ask()
    suggest_pair(trial)
    assert trial.params == {"source": "c", "target": "c"}
    suggest_pair(running)
    suggest_pair(asked)
    assert [t.params["source"] for t in (running, asked)] == ["a", "b"]


def test_a_rule_that_does_not_learn_redirects_two_workers_to_two_pairs() -> None:
    decisions = {
        (source, target): Decision(source in "ab", float(TASKS.index(source)), 0.5, "told so")
        for source, target in ordered_pairs(TASKS).itertuples(index=False, name=None)
    }
    rule = EliminationRule(decisions, {})

    class Proposes(RandomSampler):
        def sample_independent(self, study: Any, trial: Any, name: str, space: Any) -> Any:
            return {"source": "a", "target": "f"}[name]

    storage = SteppedStorage([0, 1] * 100)
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    study.enqueue_trial({"source": "f", "target": "f"})
    baseline = study.ask({name: CategoricalDistribution(TASKS) for name in ("source", "target")})
    study.tell(baseline, 0.5)
    studies = [worker(storage, Proposes(), rule) for _ in range(2)]
    found = all_at_once(storage, studies, suggest_pair)
    assert sorted(params["source"] for params in found) == ["d", "e"]
    assert {params["target"] for params in found} == {"f"}


def test_a_retried_trial_that_waits_with_its_parameters_is_one_of_those_that_run() -> None:
    space = {name: CategoricalDistribution(TASKS) for name in ("source", "target")}
    params = {"source": "b", "target": "a"}
    waiting = optuna.create_trial(
        state=TrialState.WAITING,
        params=params,
        distributions=space,  # type: ignore[arg-type]
        system_attrs={CLAIM: ["b", "a", []]},
    )
    claims = claims_of([waiting], PairParams())
    assert [claim.pair for claim in claims.values()] == [("b", "a")]


def test_all_that_there_is_has_been_tried_and_is_shared_last() -> None:
    def suggest(trial: optuna.Trial) -> None:
        trial.suggest_categorical("source", [None, "b", "c"])
        trial.suggest_int("layers", 1, 2)

    storage = SteppedStorage()
    optuna.create_study(study_name="s", storage=storage, direction="maximize")
    for _ in range(2):
        study = worker(storage, target="a")
        for _ in range(2):
            trial = study.ask()
            suggest(trial)
            study.tell(trial, 0.5)
    studies = [worker(storage, RandomSampler(seed=n), target="a") for n in range(4)]
    for study in studies:
        suggest(study.ask())
    seen = Counter((t.params["source"], t.params["layers"]) for t in study.trials)
    of_sources = {key: n for key, n in seen.items() if key[0] is not None}
    assert len(of_sources) == 4, "every setting of both pairs, before any comes again"
