"""The registry finds what configs name, and helps with what they misspell."""

import subprocess
import sys

import pytest

from minigpt4.common.errors import UserError
from minigpt4.common.registry import Registry, registry


@pytest.mark.parametrize(
    ("look_up", "name"),
    [
        (registry.get_model_class, "mini_gpt4"),
        (registry.get_builder_class, "cc_sbu_align"),
        (registry.get_task_class, "image_text_pretrain"),
        (registry.get_runner_class, "runner_base"),
        (registry.get_lr_scheduler_class, "linear_warmup_cosine_lr"),
    ],
)
def test_look_ups_import_what_they_need(look_up, name):
    assert look_up(name).__module__.startswith("minigpt4.")


def test_both_spellings_of_the_arch_are_one_class():
    assert registry.get_model_class("mini_gpt4") is registry.get_model_class("minigpt4")


def test_a_typo_is_answered_with_the_closest_name():
    with pytest.raises(UserError, match="Did you mean 'image_text_pretrain'"):
        registry.get_task_class("image_text_pretrian")


def test_a_taken_name_is_our_bug():
    own = Registry()
    own.register_task("x")(int)
    with pytest.raises(AssertionError, match="taken"):
        own.register_task("x")(str)


def test_importing_the_registry_and_the_config_stays_light():
    code = "import sys, minigpt4.common.registry, minigpt4.config.loading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
