"""An edit happens as a whole or not at all, whatever is done in it, and its undo puts everything back."""

from pathlib import Path

import pytest
import torch
from adapters import compiled
from interrupts import every_line
from strategies import agree, gaussian
from torch import nn

import ttref.surgery
from ttref import TTLinear, add_tt_lora, swap_layer
from ttref.surgery import edit

ROOMS = (str(Path(ttref.surgery.__file__).parent),)
X = gaussian((3, 8), 0, torch.float32)


def make():
    torch.manual_seed(0)
    block = nn.ModuleDict({"q": nn.Linear(8, 8), "norm": nn.BatchNorm1d(8), "v": nn.Linear(8, 8)})
    model = nn.Sequential(block, nn.ReLU(), nn.Linear(8, 4))
    model.marks, model.seen, model.names = {"a": 1}, {1, 2}, ["first"]
    return model


def state(model):
    """All that an edit may change, objects by what they are."""
    parts = list(model.named_modules(remove_duplicate=False))
    held = [(name, key, id(x)) for name, part in parts for key, x in vars(part).items() if key != "_forward_hooks"]
    inside = [(name, list(part._modules), list(part._forward_hooks.items()), part.training) for name, part in parts]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    numbers = [(name, id(x), x.requires_grad, x.detach().tolist()) for name, x in tensors]
    return held, inside, numbers, dict(model.marks), set(model.seen), list(model.names)


def drop(model):
    del model[1]


def insert(model):
    model.append(model[2])
    model[2] = nn.ReLU()


CHANGES = {
    "a layer": lambda model, change: change.put({"q": TTLinear(8, 8, 2)}),
    "two layers": lambda model, change: change.put({"q": TTLinear(8, 8, 2), "v": nn.Linear(8, 8)}),
    "flags": lambda model, change: model.requires_grad_(False),
    "numbers": lambda model, change: [change.fill(x, torch.ones_like(x)) for x in (model[2].weight, model[2].weight)],
    "a buffer's numbers": lambda model, change: change.fill(model[0]["norm"].running_mean, torch.ones(8)),
    "another parameter": lambda model, change: setattr(model[2], "bias", nn.Parameter(torch.ones(4))),
    "another buffer": lambda model, change: setattr(model[0]["norm"], "running_mean", torch.ones(8)),
    "a new buffer": lambda model, change: model[0].register_buffer("kept", torch.ones(1), persistent=False),
    "a new module": lambda model, change: model[0].update({"extra": nn.ReLU()}),
    "a module less": lambda model, change: drop(model),
    "another order": lambda model, change: insert(model),
    "an attribute": lambda model, change: setattr(model[2], "mark", True),
    "no attribute": lambda model, change: delattr(model, "names"),
    "a hook": lambda model, change: model[2].register_forward_hook(lambda *_: None),
    "the mode": lambda model, change: model.eval(),
    "a dict": lambda model, change: model.marks.update(a=2, b=3),
    "a set": lambda model, change: model.seen.symmetric_difference_update({2, 3}),
    "a list": lambda model, change: model.names.extend(["second", "third"]),
}
changes = pytest.mark.parametrize("what", CHANGES)


@changes
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_takes_everything_back(what, error):
    model = make()
    before = state(model)
    with pytest.raises(error), edit(model) as change:
        CHANGES[what](model, change)
        raise error
    assert state(model) == before
    with pytest.raises(RuntimeError, match="nothing to undo: the edit was not completed"):
        change.undo()


@changes
def test_what_is_undone_is_as_before_and_undone_once(what):
    model = make()
    before = state(model)
    with edit(model) as change:
        CHANGES[what](model, change)
        with pytest.raises(RuntimeError, match="nothing to undo"):
            change.undo()
    assert not hasattr(model, "names") or state(model) != before
    change.undo()
    assert state(model) == before
    with pytest.raises(RuntimeError, match="or it was undone already"):
        change.undo()
    assert state(model) == before
    with change:  # and again
        CHANGES[what](model, change)
    change.undo()
    assert state(model) == before


def test_an_edit_is_withdrawn_wherever_it_stands():
    model = make()
    before = state(model)
    never, change = edit(model), edit(model)
    never.withdraw()
    assert state(model) == before
    with change:
        change.put({"2": nn.Linear(8, 4)})
        change.fill(model[0]["q"].weight, torch.zeros(8, 8))
        change.withdraw()
        assert state(model) == before
    with change:
        change.put({"2": nn.Linear(8, 4)})
    assert state(model) != before
    for _ in range(2):
        change.withdraw()
        assert state(model) == before
    with pytest.raises(RuntimeError, match="nothing to undo"):
        change.undo()


def test_all_at_once_and_one_after_the_other():
    model, states, undo = make(), [], []
    for name in [name for name in CHANGES if name not in ("no attribute", "a module less", "another order")]:
        states.append(state(model))
        with edit(model) as change:
            CHANGES[name](model, change)
        undo.append(change.undo)
    while undo:
        undo.pop()()
        assert state(model) == states.pop()


SINCE = {
    "the place itself": (lambda model: swap_layer(model, "q", nn.Linear(8, 8)), "q of 0"),
    "a block around it": (lambda model: swap_layer(model, "0", nn.Identity()), "q of 0"),
    "a flag": (lambda model: model[2].bias.requires_grad_(True), "requires_grad of 2"),
    "a mark": (lambda model: setattr(model[2], "mark", False), "mark of 2"),
    "a mark less": (lambda model: delattr(model[2], "mark"), "mark of 2"),
    "a tensor": (lambda model: setattr(model[2], "weight", nn.Parameter(torch.ones(4, 8))), "a tensor that it filled"),
}


@pytest.mark.parametrize("what", SINCE)
def test_a_model_that_was_changed_since_is_left_alone(what):
    since, place = SINCE[what]
    model = make()
    before = state(model)
    with edit(model) as change:
        change.put({"q": TTLinear(8, 8, 2)})
        model.requires_grad_(False)
        change.fill(model[2].weight, torch.zeros(4, 8))
        model[2].mark = True
    with edit(model) as later:
        since(model)
    after = state(model)
    with pytest.raises(RuntimeError, match=f"changed since where the edit changed it, in {place}; put that back first"):
        change.undo()
    assert state(model) == after
    later.undo()
    change.undo()
    assert state(model) == before


def test_what_else_was_changed_since_stays():
    model = make()
    with edit(model) as change:
        change.put({"q": TTLinear(8, 8, 2)})
        model[0].requires_grad_(False)
    model.marks["b"], other = 2, nn.Linear(8, 4)
    swap_layer(model, "2", other)
    model.eval()
    change.undo()
    assert model.marks == {"a": 1, "b": 2} and model[2] is other and not model.training
    assert isinstance(model[0]["q"], nn.Linear) and model[0]["q"].weight.requires_grad


def both(model):
    with edit(model) as change:
        change.put({"q": nn.Linear(8, 8), "v": nn.Linear(8, 8)})
        model.requires_grad_(False)
        change.fill(model[2].weight, torch.ones(4, 8))
    return change


def shape_of(model):
    return [(name, type(part)) for name, part in model.named_modules()], [
        (name, x.requires_grad, x.tolist()) for name, x in model.named_parameters()
    ]


def test_interrupted_at_any_line():
    def seeded(model):
        torch.manual_seed(1)
        return both(model)

    done = make()
    seeded(done)
    untouched, done = shape_of(make()), shape_of(done)
    outcomes = [shape_of(model) for model in every_line(make, seeded, ROOMS)]
    assert all(outcome in (untouched, done) for outcome in outcomes)
    assert outcomes[0] == untouched != done == outcomes[-1]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("what", ["swap", "edit"])
def test_an_edit_whose_changes_cannot_be_kept_is_taken_back(monkeypatch, what, error):
    def fail(edit):
        raise error

    model = make()
    before = state(model)
    monkeypatch.setattr(edit, "_made", fail)
    with pytest.raises(error):
        swap_layer(model, "q", nn.Linear(8, 8)) if what == "swap" else both(model)
    assert state(model) == before


def test_an_undo_interrupted_at_any_line():
    undo = {}

    def edited():
        model = make()
        torch.manual_seed(1)
        undo[id(model)] = model, both(model).undo
        return model

    done = shape_of(edited())
    outcomes = [shape_of(model) for model in every_line(edited, lambda model: undo[id(model)][1](), ROOMS)]
    assert all(outcome in (shape_of(make()), done) for outcome in outcomes)
    assert outcomes[0] == done and outcomes[-1] == shape_of(make())


class Stubborn(set):
    """Interrupts what writes into it, the first time."""

    def clear(self):
        super().clear()
        if self.times:
            self.times -= 1
            raise KeyboardInterrupt


@pytest.mark.parametrize("times", [1, 5])
def test_what_takes_back_is_not_stopped_by_another_interrupt(times):
    model = make()
    model.seen = Stubborn({1, 2})
    model.seen.times = 0
    before = state(model)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt), edit(model) as change:
            change.put({"q": nn.Linear(8, 8)})
            model.seen.add(3)
            model.requires_grad_(False)
            model.seen.times = times
            raise error
        assert state(model) == before
    with edit(model) as change:
        model.seen.add(3)
        change.fill(model[2].bias, torch.ones(4))
    model.seen.times = times
    with pytest.raises(KeyboardInterrupt):
        change.undo()
    assert state(model) == before
    with pytest.raises(RuntimeError, match="undone already"):
        change.undo()


# Names, wrappers and ties


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(8, 8)
        self.block = nn.ModuleDict({"q": nn.Linear(8, 8), "module": nn.Linear(8, 8)})

    def forward(self, x):
        return self.block["module"](self.block["q"](self.q(x)))


@pytest.mark.parametrize(
    "wrap", [lambda model: model, compiled, nn.DataParallel, lambda m: compiled(nn.DataParallel(m))]
)
def test_one_rule_for_names(wrap):
    for name, whole in [
        ("q", "q"),
        ("block.q", "block.q"),
        ("module", "block.module"),
        ("block.module", "block.module"),
    ]:
        model = Named()
        wrapped, layer, old = wrap(model), TTLinear(8, 8, 2), model.get_submodule(whole)
        before = wrapped(X)
        with edit(wrapped) as change:
            assert change.put({name: layer}) == {whole: old}
        assert model.get_submodule(whole) is layer
        torch.testing.assert_close(wrapped(X), model(X))
        assert not torch.allclose(wrapped(X), before)
        change.undo()
        assert model.get_submodule(whole) is old and agree(wrapped(X), before)


def test_names_that_are_refused():
    model = nn.ModuleDict({"a": nn.ModuleDict({"q": nn.Linear(8, 8)}), "b": nn.ModuleDict({"q": nn.Linear(8, 8)})})
    for name, message in [
        ("q", "'q' names 2 modules, a.q and b.q among them; give all of it"),
        (".q", "no module is named '.q'"),
        ("", "no module is named ''"),
        ("a.q.weight", "no module is named 'a.q.weight' .* end in q"),
        ("a.*", "not as a pattern"),
        ("b.q.", "no module is named 'b.q.'"),
    ]:
        before = [id(module) for module in model.modules()]
        with pytest.raises(ValueError, match=message), edit(model) as change:
            change.put({"b.q": nn.Linear(8, 8), name: nn.Linear(8, 8)})
        assert [id(module) for module in model.modules()] == before

    with pytest.raises(ValueError, match="the model is a single Linear without modules in it"):
        swap_layer(nn.DataParallel(nn.Linear(8, 8)), "", nn.Linear(8, 8))


def test_one_module_is_named_once():
    model = Named()
    with pytest.raises(ValueError, match="block.module, module name the same module more than once"):
        with edit(model) as change:
            change.put({"block.module": nn.Linear(8, 8), "module": nn.Linear(8, 8)})


def test_a_compiled_layer_is_changed_inside():
    model = nn.Sequential(compiled(nn.Linear(8, 8)), nn.Linear(8, 4))
    before, wrapper = model(X), model[0]
    layer = TTLinear(8, 8, 2)
    old = swap_layer(model, "0", layer)
    assert model[0] is wrapper and isinstance(old, nn.Linear)
    torch.testing.assert_close(model(X), model[1](layer(X)))
    assert swap_layer(model, "0", old) is layer and agree(model(X), before)


def test_through_peft():
    import peft

    config = peft.LoraConfig(r=2, target_modules=["block.q"])
    model = Named()
    wrapped = peft.get_peft_model(model, config)
    before, old = wrapped(X), model.q
    for name in ("q", "base_model.model.q"):
        layer = TTLinear(8, 8, 2)
        with edit(wrapped) as change:
            assert change.put({name: layer}) == {"q": old}
        assert model.q is layer and not torch.allclose(wrapped(X), before)
        change.undo()
        assert model.q is old and agree(wrapped(X), before)


def test_ties_that_break_and_ties_that_hold():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    for layers in ({"a": nn.Linear(8, 8)}, {"c": nn.Linear(8, 8), "b": nn.Linear(8, 8)}):
        with pytest.raises(ValueError, match="[ab] shares a parameter with [ab].weight: .* copy.deepcopy"):
            with edit(model) as change:
                change.put(layers)
    head = nn.Linear(8, 8)
    head.weight = model["a"].weight  # the new one holds it as well
    swap_layer(model, "b", head)
    swap_layer(model, "b", nn.Sequential(head))


def test_a_layer_that_is_used_in_hiding_gets_no_adapter():
    """It would answer with the update here and without it there."""
    model = nn.ModuleDict({"q": nn.Linear(8, 8), "user": nn.Identity()})
    model["user"].kept = [model["q"]]
    with pytest.raises(ValueError, match="user uses q without holding it"):
        add_tt_lora(model, "q", rank=1, alpha=1)
    assert isinstance(model["q"], nn.Linear) and model["q"].weight.requires_grad
