"""Deliberate faults of how published models come in and go out; see `mutants.py`."""

from faults_of_mathematics import Mutant

TOKENS = "tests/tasks/test_published.py"
FOLDER = "tests/test_published_model.py"
PUBLISHED = "fiberjax/tasks/published.py"
TOKENIZER = "fiberjax/tasks/tokenizer.py"
RENDER = "fiberjax/tasks/render.py"
EXPERIMENT = "fiberjax/experiment.py"
MODEL_FOLDER = "fiberjax/model_folder.py"
PUBLISH = "fiberjax/run/publish.py"

FAULTS = (
    # Tokens.
    Mutant(
        "only the first end of sequence ends a completion",
        TOKENIZER,
        "self.end_ids = tuple(dict.fromkeys(end_ids))",
        "self.end_ids = end_ids[:1]",
        (f"{TOKENS}::test_ends_and_padding_are_found_in_order",),
    ),
    Mutant(
        "the tokenizer's own end is not what is taught",
        PUBLISHED,
        "sorted(ids, key=lambda token: token != own)",
        "ids",
        (f"{TOKENS}::test_ends_and_padding_are_found_in_order",),
    ),
    Mutant(
        "what the template ends an answer with does not end one",
        TOKENIZER,
        "tuple(dict.fromkeys((turn[0], *end_ids)))",
        "self.end_ids",
        (f"{TOKENS}::test_ends_and_padding_are_found_in_order",),
    ),
    Mutant(
        "the sampler looks for one end token",
        "fiberjax/policy/sampler.py",
        "jnp.any(token[:, None] == jnp.array(end_ids), axis=1)",
        "(token == end_ids[0])",
        ("tests/policy/test_sampler.py::test_any_of_several_tokens_ends_a_completion",),
    ),
    Mutant(
        "a row's text may hold control tokens",
        TOKENIZER,
        "self._plain.encode_special_tokens = True",
        "self._plain.encode_special_tokens = False",
        (f"{TOKENS}::test_no_text_of_a_row_becomes_a_control_token",),
    ),
    Mutant(
        "a template's pieces are whoever's",
        TOKENIZER,
        "self._split(piece.text) if piece.own else [piece]",
        "[piece]",
        (f"{TOKENS}::test_prompts_are_what_transformers_makes_of_them",),
    ),
    Mutant(
        "examples may hold control tokens",
        TOKENIZER,
        "self._split(piece.text) if piece.own else [piece]",
        "[piece] if piece.row is not None else self._split(piece.text)",
        (f"{TOKENS}::test_system_prompts_and_examples_are_texts_too",),
    ),
    Mutant(
        "what follows a control token begins a text",
        TOKENIZER,
        "ids += self._encode(run, first=not ids) if run else []",
        "ids += self._encode(run, first=True) if run else []",
        (f"{TOKENS}::test_without_a_control_token_before_it_a_text_begins",),
    ),
    Mutant(
        "a control token that is a word comes through",
        TOKENIZER,
        "if control is not None:",
        "if False:",
        (f"{TOKENS}::test_a_token_that_only_a_control_token_spells_is_refused",),
    ),
    Mutant(
        "special tokens that were drawn vanish",
        TOKENIZER,
        "skip_special_tokens=False",
        "skip_special_tokens=True",
        (f"{TOKENS}::test_no_drawn_token_is_lost", f"{TOKENS}::test_the_folder_says_every_end"),
    ),
    Mutant(
        "a plain prompt has no beginning",
        TOKENIZER,
        "return [*self.begin_ids, *self._encode(text, first=True)]",
        "return self._encode(text, first=True)",
        (f"{TOKENS}::test_a_plain_prompt_begins_as_the_tokenizer_has_it",),
    ),
    Mutant(
        "overrides of the end are not read",
        PUBLISHED,
        'if "end" in overrides:',
        "if False:",
        (f"{TOKENS}::test_overrides_are_believed_in_place_of_the_folder",),
    ),
    Mutant(
        "chat that is off is on",
        PUBLISHED,
        'if model.chat == "off" or',
        "if",
        (f"{TOKENS}::test_chat_is_taken_where_there_is_one",),
    ),
    Mutant(
        "an answer is taught in place of the solution",
        "fiberjax/tasks/files.py",
        "pairs.append((record.prompt, record.solution or record.answers[0]))",
        "pairs.append((record.prompt, record.answers[0]))",
        (f"{TOKENS}::test_examples_may_come_from_a_file",),
    ),
    Mutant(
        "a damaged file is no file",
        PUBLISHED,
        'raise ValueError(f"{path.name} cannot be read: {error}") from None',
        "return {}",
        (f"{TOKENS}::test_a_damaged_folder_is_refused_by_its_name",),
    ),
    Mutant(
        "a folder's own code is trusted",
        PUBLISHED,
        "trust_remote_code=False",
        "trust_remote_code=True",
        (f"{TOKENS}::test_code_of_a_folder_is_not_run",),
    ),
    # Templates.
    Mutant(
        "messages are never trimmed",
        RENDER,
        "trimmed += [(left is None, right is None), (False, False)]",
        "trimmed += [(False, False), (False, False)]",
        (f"{TOKENS}::test_prompts_are_what_transformers_makes_of_them",),
    ),
    Mutant(
        "what a template does to a message is not tried",
        RENDER,
        "if assembled(made, probe) != chat(filled(probe)):",
        "if False:",
        (f"{TOKENS}::test_a_template_that_cannot_be_followed_is_refused",),
    ),
    Mutant(
        "thinking is on where it is off",
        RENDER,
        'name: mode == "on" for name in _THINKING',
        'name: mode == "off" for name in _THINKING',
        (f"{TOKENS}::test_thinking_is_chosen_where_the_template_has_it",),
    ),
    Mutant(
        "a template is told what day it is",
        RENDER,
        'made.globals["strftime_now"] = _TODAY.strftime',
        "pass",
        (f"{TOKENS}::test_a_template_that_asks_for_today_is_told_the_same_every_day",),
    ),
    Mutant(
        "a template may take as long as it likes",
        RENDER,
        '_limit(request["seconds"])',
        "_limit(99)",
        (f"{TOKENS}::test_a_template_runs_in_a_process_of_its_own",),
    ),
    # Stop strings.
    Mutant(
        "a token with a stop string within ends nothing",
        TOKENIZER,
        "if any(text in self._decode([token]) for text in stop)",
        "if False",
        (f"{TOKENS}::test_stop_strings_end_a_completion",),
    ),
    Mutant(
        "a completion goes on for a token behind its stop string",
        TOKENIZER,
        "        return low\n",
        "        return low + 1\n",
        (f"{TOKENS}::test_stop_strings_end_a_completion",),
    ),
    Mutant(
        "cut tokens keep their log-probabilities",
        "fiberjax/train/rollout.py",
        "log_prob=np.where(kept, drawn.log_prob, np.float32(0))",
        "log_prob=drawn.log_prob",
        (f"{TOKENS}::test_a_completion_ends_with_its_stop_string_as_if_it_had_been_drawn_so",),
    ),
    # The folder decides.
    Mutant(
        "a run with a folder begins at random",
        "fiberjax/run/warm_start.py",
        "    if directory:\n        return published_params",
        "    if False:\n        return published_params",
        (f"{FOLDER}::test_the_folder_gives_the_shape_and_the_run_trains",),
    ),
    Mutant(
        "what was set on purpose makes place too",
        MODEL_FOLDER,
        'if f"policy.{name}" not in overridden:',
        "if True:",
        (f"{FOLDER}::test_a_shape_that_contradicts_the_folder_is_refused",),
    ),
    Mutant(
        "a config without a folder is copied",
        MODEL_FOLDER,
        "    if not shape:\n        return config",
        "    if not shape:\n        return config.copy_and_resolve_references()",
        (f"{FOLDER}::test_without_a_folder_a_config_stays_as_it_is",),
    ),
    Mutant(
        "windows may be longer than the model's context",
        MODEL_FOLDER,
        "if longest is not None and whole > longest:",
        "if False:",
        (f"{FOLDER}::test_what_does_not_go_with_a_folder_is_refused",),
    ),
    Mutant(
        "published weights are taught without being asked",
        MODEL_FOLDER,
        "if model.folder and warm_start.steps > 0 and not model.warm_start:",
        "if False:",
        (f"{FOLDER}::test_what_does_not_go_with_a_folder_is_refused",),
    ),
    Mutant(
        "a supervised turn ends with the padding",
        "fiberjax/tasks/supervised.py",
        "examples.vocabulary.end_ids[0]",
        "examples.vocabulary.end_ids[-1]",
        (f"{FOLDER}::test_a_supervised_phase_on_a_folder_is_there_for_who_asks",),
    ),
    Mutant(
        "a tokenizer may be larger than the vocabulary",
        EXPERIMENT,
        "if shape and type(size) is int and size < vocabulary.size:",
        "if False:",
        (f"{FOLDER}::test_a_wrong_folder_is_one_error_before_anything_compiles",),
    ),
    Mutant(
        "the files of a folder are not looked at before the run",
        EXPERIMENT,
        "if model.folder and load_data is None:",
        "if False:",
        (f"{FOLDER}::test_a_wrong_folder_is_one_error_before_anything_compiles",),
    ),
    Mutant(
        "a command does not say what it was told",
        "experiments/train.py",
        "model_folder.with_folder(CONFIG.value, overridden)",
        "model_folder.with_folder(CONFIG.value)",
        (f"{FOLDER}::test_the_commands_refuse_what_contradicts_the_folder[train]",),
    ),
    Mutant(
        "a plan does not say what it was told",
        "experiments/plan.py",
        "model_folder.with_folder(CONFIG.value, overridden)",
        "model_folder.with_folder(CONFIG.value)",
        (f"{FOLDER}::test_the_commands_refuse_what_contradicts_the_folder[plan]",),
    ),
    # Older runs.
    Mutant(
        "an older run forgets its tokens",
        "fiberjax/run/migrations.py",
        'overrides |= {"pad": pad, "begin": begin, "end": [end]}',
        "pass",
        (f"{FOLDER}::test_an_older_run_of_a_folder_goes_on_as_it_was",),
    ),
    Mutant(
        "an older run takes the tokenizer of its folder",
        "fiberjax/run/migrations.py",
        'tokenizer = "tasks" if folder else "auto"',
        'tokenizer = "auto"',
        (f"{FOLDER}::test_an_older_run_of_weights_alone_keeps_its_characters",),
    ),
    # Out again.
    Mutant(
        "an exported config is made anew",
        PUBLISH,
        'described = _as_the_source(json.loads((Path(source) / "config.json").read_text()), dtype)',
        "pass",
        (f"{FOLDER}::test_what_comes_out_is_what_went_in_with_other_weights",),
    ),
    Mutant(
        "a shard begins where the whole file did",
        PUBLISH,
        'own[name] = header[name] | {"data_offsets": [at, at + sizes[name]]}',
        "own[name] = header[name]",
        (f"{FOLDER}::test_what_comes_out_is_what_went_in_with_other_weights",),
    ),
    Mutant(
        "any checkpoint is the newest",
        "fiberjax/run/loop.py",
        "saved.restore(experiment.abstract_state(), iteration)",
        "saved.restore(experiment.abstract_state())",
        (f"{FOLDER}::test_what_comes_out_is_what_went_in_with_other_weights",),
    ),
    Mutant(
        "exported characters have no beginning",
        PUBLISH,
        'single="<s> $A"',
        'single="$A"',
        (f"{FOLDER}::test_a_policy_that_began_at_random_brings_its_tokenizer",),
    ),
    Mutant(
        "the effect of rounding is that of nothing",
        PUBLISH,
        "gap = exact - np.asarray(log_prob(rounded))[mask]",
        "gap = exact - np.asarray(log_prob(params))[mask]",
        (f"{FOLDER}::test_the_effect_of_rounding_is_measured",),
    ),
)
