"""The planted bugs: mistakes that were made once, or may be made, and the test that notices each.

plant.py plants them, one at a time. Each old text is in its file once; test_planted_bugs.py sees to
that. docs/zoo.py has eleven more, with what they do to a training run.
"""
from typing import NamedTuple


class Bug(NamedTuple):
    """One mistake."""

    name: str
    changes: list  # (file, what stands there, what stands there instead)
    guard: str  # file::test, the one that has to fail


# Planted in an earlier version already. Thirteen of them passed all tests there.
EARLIER = [
    # ------------------------------------------------------------ where the reward is read
    Bug(
        "the reward is read one token early",
        [("model.py", "return attention_mask.sum(-1, keepdim=True) - 1",
          "return (attention_mask.sum(-1, keepdim=True) - 2).clamp(min=0)")],
        "tests/test_model.py::test_the_last_valid_token_is_the_sum_of_the_mask_minus_one",
    ),
    Bug(
        "the index is moved by one after the check",
        [("model.py", "index = last[..., None].expand",
          "index = (last - 1).clamp(min=0)[..., None].expand")],
        "tests/test_model.py::test_the_reward_is_the_head_applied_to_the_last_valid_hidden_state",
    ),
    Bug(
        "packing: the reward is read one token early",
        [("extras/packing.py", "end = [int(index[-1]) for index in indices]",
          "end = [int(index[-2]) for index in indices]")],
        "tests/extras/test_packing.py::test_start_to_last_is_exactly_the_response",
    ),
    Bug(
        "the rewards keep the last axis of the head",
        [("model.py", "        return rewards.flatten()  # (N,)",
          "        return rewards.flatten(0, 1)")],
        "tests/test_model.py::test_the_reward_is_the_head_applied_to_the_last_valid_hidden_state",
    ),
    # ------------------------------------------------------------ what a token sees
    Bug(
        "packing: the positions of a response start at 0 again",
        [("extras/packing.py", "form_of(indices, tokens))", "form_of(indices, tokens, starts))"),
         ("extras/packing.py", "def form_of(indices: list[np.ndarray], tokens: int)",
          "def form_of(indices: list[np.ndarray], tokens: int, starts)"),
         ("extras/packing.py", "        position_ids[index] = positions\n",
          "        begin = starts[number]\n"
          "        position_ids[index] = np.where(index >= begin, index - begin, positions)\n")],
        "tests/extras/test_packing.py::test_positions_of_a_response_continue_where_its_prompt_ends",
    ),
    Bug(
        "packing: positions run through the whole row",
        [("extras/packing.py", "        position_ids[index] = positions\n",
          "        position_ids[index] = index\n")],
        "tests/extras/test_packing.py::test_positions_of_a_response_continue_where_its_prompt_ends",
    ),
    Bug(
        "packing: a response sees the one before it",
        [("extras/packing.py", "        mixed = PADDED.attend(q, k, v)  # (S, H, L, P)\n"
          "        return take(mixed, self.pack)\n",
          "        return PADDED.attend(q, k, v)\n"),
         ("extras/packing.py", "        q = take(q, self.unpack)  # (S, H, L, P)\n"
          "        k = take(k, self.unpack)  # (S, G, L, P)\n"
          "        v = take(v, self.unpack)\n", "")],
        "tests/extras/test_packing.py::"
        "test_a_token_sees_its_prompt_and_its_own_response_and_nothing_else",
    ),
    Bug(
        "key and value heads are tiled, not repeated",
        [("model.py", "        grouped = q.shape[1] != k.shape[1]\n",
          "        grouped = False\n"
          "        k = k.repeat(1, q.shape[1] // k.shape[1], 1, 1)\n"
          "        v = v.repeat(1, q.shape[1] // v.shape[1], 1, 1)\n")],
        "tests/test_parity.py::test_attention_written_plainly",
    ),
    Bug(
        "packing: key and value heads are tiled, not repeated",
        [("extras/packing.py", "        mixed = PADDED.attend(q, k, v)  # (S, H, L, P)\n",
          "        k = k.repeat(1, q.shape[1] // k.shape[1], 1, 1)\n"
          "        v = v.repeat(1, q.shape[1] // v.shape[1], 1, 1)\n"
          "        mixed = PADDED.attend(q, k, v)  # (S, H, L, P)\n")],
        "tests/extras/test_packing.py::test_rewards_and_gradients_are_those_of_the_padded_form",
    ),
    # ------------------------------------------------------------ the value head, and loading
    Bug(
        "the bias of the head is not added",
        [("model.py", "rewards = self.score(last_hidden.float())",
          "rewards = F.linear(last_hidden.float(), self.score.weight)")],
        "tests/test_model.py::test_the_reward_is_the_head_applied_to_the_last_valid_hidden_state",
    ),
    Bug(
        "the bias of the head is never saved",
        [("model.py", 'if "score.bias" in tensors and not tensors["score.bias"].any():',
          'if "score.bias" in tensors:')],
        "tests/test_model.py::test_a_bias_of_zero_is_left_out_because_transformers_has_none",
    ),
    Bug(
        "a new head where training starts",
        [("train_rm.py", "        # A head that is kept is read where it was trained to be read.\n",
          "        model.init_head()\n")],
        "tests/test_run.py::test_a_pretrained_head_is_kept_and_a_language_model_gets_a_new_one",
    ),
    Bug(
        "the head is computed in bfloat16 under autocast",
        [("model.py", "        with torch.autocast(hidden.device.type, enabled=False):\n"
          "            rewards = self.score(last_hidden.float())  # (R, S, 1)\n"
          "        return rewards.flatten()  # (N,)\n",
          "        rewards = self.score(last_hidden)\n"
          "        return rewards.flatten().float()\n")],
        "tests/test_model.py::test_under_bfloat16_autocast_the_head_still_computes_in_float32",
    ),
    Bug(
        "rewards are rounded to bfloat16 under autocast",
        [("model.py", "        return rewards.flatten()  # (N,)\n",
          "        if torch.is_autocast_enabled(hidden.device.type):\n"
          "            rewards = rewards.bfloat16().float()\n"
          "        return rewards.flatten()\n")],
        "tests/test_model.py::test_under_bfloat16_autocast_the_head_still_computes_in_float32",
    ),
    Bug(
        "score and report compute in bfloat16 unless told otherwise",
        [("eval.py", "dtype = torch.bfloat16 if args.bf16 else None", "dtype = torch.bfloat16")],
        "tests/test_commands.py::test_bfloat16_is_near_float32_and_not_it",
    ),
    Bug(
        "missing tensors are ignored",
        [("model.py", 'missing = [f"missing: {name}" for name in missing if not '
          'name.startswith("score.")]', "missing = []")],
        "tests/test_model.py::test_tensors_that_do_not_fit_are_named_in_one_line",
    ),
    Bug(
        "tensors that are not expected are ignored",
        [("model.py", 'unexpected = [f"not expected: {name}" for name in unexpected]',
          "unexpected = []")],
        "tests/test_model.py::test_tensors_that_do_not_fit_are_named_in_one_line",
    ),
    Bug(
        "θ is 10000, whatever the config says",
        [("model.py", 'return 1 / config.rope["rope_theta"] ** exponents',
          "return 1 / 10000.0 ** exponents")],
        "tests/test_parity.py::test_rope_turns_by_the_theta_of_the_config",
    ),
    Bug(
        "θ is guessed where the config has none",
        [("model.py", 'rope = {"rope_theta": config_json.get("rope_theta")}',
          'rope = {"rope_theta": config_json.get("rope_theta") or 10000.0}')],
        "tests/test_parity.py::test_what_would_change_the_arithmetic_is_named_and_refused",
    ),
    Bug(
        "dropout that never ends",
        [("model.py", "rewards = self.score(last_hidden.float())",
          "rewards = self.score(F.dropout(last_hidden.float(), 0.1))")],
        "tests/test_model.py::test_two_passes_in_training_agree_because_nothing_is_dropped_out",
    ),
    Bug(
        "a model with dropout is evaluated as in training",
        [("model.py", "        self.score = nn.Linear(config.hidden_size, 1)\n\n",
          "        self.score = nn.Linear(config.hidden_size, 1)\n"
          "        self.dropout = nn.Dropout(0.1)\n\n"),
         ("model.py", "rewards = self.score(last_hidden.float())",
          "rewards = self.score(self.dropout(last_hidden.float()))")],
        "tests/test_model.py::test_two_passes_in_training_agree_because_nothing_is_dropped_out",
    ),
    # ------------------------------------------------------------ the loss and the accuracy
    Bug(
        "chosen and rejected swapped in the loop",
        [("train_rm.py", "        r_chosen,\n        r_rejected,\n        batch.margin,\n",
          "        r_rejected,\n        r_chosen,\n        batch.margin,\n")],
        "tests/test_train.py::test_the_gradient_is_that_of_the_mean_loss_written_plainly",
    ),
    Bug(
        "a tie counts as right",
        [("loss.py", "(r_chosen > r_rejected).float() + 0.5 * (r_chosen == r_rejected)",
          "(r_chosen >= r_rejected).float()")],
        "tests/test_loss.py::test_a_tie_counts_half",
    ),
    Bug(
        "a tie counts as right in the parts of the report",
        [("extras/report_details.py", "correct = np.sign(gaps) / 2 + 0.5",
          "correct = (gaps >= 0).astype(float)")],
        "tests/extras/test_report_details.py::test_the_best_of_a_row_wins_alone_shares_or_loses",
    ),
    Bug(
        "the margin is added",
        [("loss.py", "losses = -F.logsigmoid(gap - margin)",
          "losses = -F.logsigmoid(gap + margin)")],
        "tests/test_loss.py::test_margin_is_a_gap_that_has_to_be_won_first",
    ),
    Bug(
        "the margin is added where the label is flipped",
        [("loss.py", "-F.logsigmoid(-gap - margin)", "-F.logsigmoid(-gap + margin)")],
        "tests/test_loss.py::test_a_flipped_label_with_a_margin_is_lost_by_the_margin",
    ),
    Bug(
        "label smoothing is applied twice",
        [("loss.py", "losses = (1 - label_smoothing) * losses + label_smoothing * flipped\n",
          "losses = (1 - label_smoothing) * losses + label_smoothing * flipped\n"
          "        losses = (1 - label_smoothing) * losses + label_smoothing * flipped\n")],
        "tests/test_loss.py::test_label_smoothing_is_the_expected_loss_over_flipped_labels",
    ),
    Bug(
        "label smoothing weighs the wrong term",
        [("loss.py", "(1 - label_smoothing) * losses + label_smoothing * flipped",
          "label_smoothing * losses + (1 - label_smoothing) * flipped")],
        "tests/test_loss.py::test_label_smoothing_is_the_expected_loss_over_flipped_labels",
    ),
    Bug(
        "--label-smoothing does not reach the loss",
        [("train_rm.py", "label_smoothing=args.label_smoothing", "label_smoothing=0.0")],
        "tests/test_train.py::test_the_gradient_is_that_of_the_mean_loss_written_plainly",
    ),
    Bug(
        "label smoothing and centering change places in the loop",
        [("train_rm.py", "        label_smoothing=args.label_smoothing,\n"
          "        centering=args.center_rewards_coefficient,\n",
          "        label_smoothing=args.center_rewards_coefficient,\n"
          "        centering=args.label_smoothing,\n")],
        "tests/test_train.py::test_the_gradient_is_that_of_the_mean_loss_written_plainly",
    ),
    # ------------------------------------------------------------ the step
    Bug(
        "gradients are clipped before they are unscaled",
        [("train_rm.py", "            scaler.unscale_(optimizer)  #", "            #"),
         ("train_rm.py", '            means["grad_norm"] = whole(norm).item()\n',
          "            scaler.unscale_(optimizer)\n"
          '            means["grad_norm"] = whole(norm).item()\n')],
        "tests/test_train.py::test_half_precision_logs_what_float32_logs",
    ),
    Bug(
        "accumulation divides by the number of micro-batches",
        [("train_rm.py", '        loss = (batch.weight * values["loss"]).sum()\n',
          '        loss = values["loss"].mean() / len(batches)\n')],
        "tests/test_train.py::test_accumulation_takes_the_step_of_the_big_batch",
    ),
    Bug(
        "no clipping at all",
        [("train_rm.py", "clip_grad_norm_(model.parameters(), args.max_grad_norm)",
          "clip_grad_norm_(model.parameters(), math.inf)")],
        "tests/test_train.py::test_the_gradient_is_clipped_to_max_grad_norm_before_the_update",
    ),
    Bug(
        "--max-grad-norm is not obeyed",
        [("train_rm.py", "clip_grad_norm_(model.parameters(), args.max_grad_norm)",
          "clip_grad_norm_(model.parameters(), 1.0)")],
        "tests/test_train.py::test_the_gradient_is_clipped_to_max_grad_norm_before_the_update",
    ),
    Bug(
        "the learning rate moves with every micro-batch",
        [("train_rm.py", "lr = learning_rate(step, total, args.lr)",
          "lr = learning_rate(step * args.gradient_accumulation_steps, total, args.lr)")],
        "tests/test_train.py::test_the_optimizer_gets_the_learning_rate_of_each_step",
    ),
    Bug(
        "the learning rate is never set",
        [("train_rm.py", '                group["lr"] = lr\n', "                pass\n")],
        "tests/test_train.py::test_the_optimizer_gets_the_learning_rate_of_each_step",
    ),
    Bug(
        "weight decay on norms and biases too",
        [("train_rm.py", '{"params": vectors, "weight_decay": 0.0}',
          '{"params": vectors, "weight_decay": weight_decay}')],
        "tests/test_train.py::test_weight_decay_pulls_on_matrices_and_on_nothing_else",
    ),
    Bug(
        "weight decay is ignored",
        [("train_rm.py", '{"params": matrices, "weight_decay": weight_decay}',
          '{"params": matrices, "weight_decay": 0.0}')],
        "tests/test_train.py::test_weight_decay_pulls_on_matrices_and_on_nothing_else",
    ),
    Bug(
        "gradients are never zeroed",
        [("train_rm.py", "            optimizer.zero_grad()\n", "")],
        "tests/test_train.py::test_gradients_of_earlier_steps_are_gone",
    ),
    Bug(
        "only the last micro-batch is logged",
        [("train_rm.py", "means[name] = means.get(name, 0) + share", "means[name] = share")],
        "tests/test_train.py::test_accumulation_takes_the_step_of_the_big_batch",
    ),
    Bug(
        "only the last step is logged",
        [("train_rm.py", "line[name] = sum(step[name] for step in steps) / len(steps)",
          "line[name] = steps[-1][name]")],
        "tests/test_run.py::test_logged_numbers_are_means_over_all_pairs_since_the_last_line",
    ),
    # ------------------------------------------------------------ several processes
    Bug(
        "processes: each takes the mean of its own rows",
        [("train_rm.py", '        loss = (batch.weight * values["loss"]).sum()\n',
          '        weight = batch.weight\n'
          '        if process_count() > 1:\n'
          '            weight = weight / weight.sum() / process_count()\n'
          '        loss = (weight * values["loss"]).sum()\n')],
        "tests/test_train.py::test_processes_with_unequal_shares_take_the_step_of_one",
    ),
    Bug(
        "processes: gradients are averaged, not added",
        [("train_rm.py", "scaler.scale(loss * process_count()).backward()",
          "scaler.scale(loss).backward()")],
        "tests/test_train.py::test_processes_with_unequal_shares_take_the_step_of_one",
    ),
    Bug(
        "processes: the last, incomplete round of an evaluation is dropped",
        [("eval.py", "range(process, process + len(batches), processes)",
          "range(process, process + len(batches) - len(batches) % processes, processes)")],
        "tests/test_commands.py::test_processes_share_an_evaluation_and_count_each_text_once",
    ),
    Bug(
        "processes: a batch is counted twice in the last round",
        [("eval.py", "        if not is_spare:\n", "        if True:\n")],
        "tests/test_commands.py::test_processes_share_an_evaluation_and_count_each_text_once",
    ),
    # ------------------------------------------------------------ texts and tokens
    Bug(
        "BOS twice: the tokenizer adds its own",
        [("data.py", "encode_batch_fast(with_end, add_special_tokens=False)",
          "encode_batch_fast(with_end, add_special_tokens=True)")],
        "tests/test_data.py::"
        "test_bos_once_where_the_tokenizer_uses_one_and_the_end_token_once_and_last",
    ),
    Bug(
        "BOS twice where a text is scored",
        [("extras/raw_texts.py", "    if not text.startswith(tokenizer.bos):\n", "    if True:\n")],
        "tests/extras/test_raw_texts.py::test_bos_and_end_token_are_there_once",
    ),
    Bug(
        "a long text loses its end, the token where the reward is read",
        [("data.py", "np.concatenate((sequence[:bos], sequence[bos + excess :]))",
          "sequence[:max_length]"),
         ("data.py", "return shortened, start - excess", "return shortened, start")],
        "tests/test_batches.py::"
        "test_a_prompt_that_is_too_long_loses_its_oldest_tokens_and_nothing_else",
    ),
    Bug(
        "a long response is cut, and the end token put back",
        [("data.py", "np.concatenate((sequence[:bos], sequence[bos + excess :]))",
          "np.append(sequence[: max_length - 1], sequence[-1:])"),
         ("data.py", "return shortened, start - excess", "return shortened, start")],
        "tests/test_batches.py::"
        "test_a_prompt_that_is_too_long_loses_its_oldest_tokens_and_nothing_else",
    ),
    Bug(
        "a text that is too long is cut where it is scored",
        [("extras/raw_texts.py",
          '        raise DataError(f"{where}: {tokens} tokens do not fit into '
          '{scorer.max_length}")\n',
          "        sequence = sequence[: scorer.max_length]\n")],
        "tests/extras/test_raw_texts.py::"
        "test_a_text_as_long_as_the_limit_is_scored_and_a_longer_one_refused",
    ),
    Bug(
        "a long prompt loses its newest tokens",
        [("data.py", "        shortened = []\n",
          "        shortened = []\n        cut = start - self.header_tokens() - excess\n"),
         ("data.py", "(sequence[:bos], sequence[bos + excess :])",
          "(sequence[:cut], sequence[cut + excess :])")],
        "tests/test_batches.py::"
        "test_a_prompt_that_is_too_long_loses_its_oldest_tokens_and_nothing_else",
    ),
    Bug(
        "a text that is scored is rendered once more",
        [("extras/raw_texts.py", "    return tokenizer.encode([text])[0]\n",
          '    text = tokenizer.render([{"role": "assistant", "content": text}])\n'
          "    return tokenizer.encode([text])[0]\n")],
        "tests/extras/test_raw_texts.py::"
        "test_a_text_its_ids_and_prompt_and_response_have_the_same_reward",
    ),
    # ------------------------------------------------------------ rows: the split, their order
    Bug(
        "the split looks at the id of a row too",
        [("data.py", "    return text_hash(json.dumps([seed, identity]))\n",
          '    return text_hash(json.dumps([seed, identity, row.raw.get("id")]))\n')],
        "tests/test_data.py::test_no_prompt_is_on_both_sides_whatever_else_differs_in_its_rows",
    ),
    Bug(
        "the held-out rows are trained on too",
        [("train_rm.py", "            if is_held_out == held_out:\n",
          "            if is_held_out or not held_out:\n")],
        "tests/test_run.py::test_no_prompt_is_both_trained_on_and_held_out",
    ),
    Bug(
        "the evaluation reads the rows to train on",
        [("train_rm.py", "[examples[n] for n in examples.numbers(held_out=True)]",
          "[examples[n] for n in examples.numbers(held_out=False)]")],
        "tests/test_run.py::test_evaluations_during_training_are_reports_on_the_held_out_rows",
    ),
    Bug(
        "only the evaluations during training read the rows to train on",
        [("train_rm.py", "def evaluate(args, model, tokenizer, examples, dtype=None):",
          "def evaluate(args, model, tokenizer, examples, dtype=None, held_out=True):"),
         ("train_rm.py", "examples.numbers(held_out=True)]", "examples.numbers(held_out)]"),
         ("train_rm.py", "evaluate(args, model, tokenizer, examples, autocast_dtype(args))",
          "evaluate(args, model, tokenizer, examples, autocast_dtype(args), False)")],
        "tests/test_run.py::test_evaluations_during_training_are_reports_on_the_held_out_rows",
    ),
    Bug(
        "rewards come back in the order of length",
        [("eval.py", "            rewards[part.indices] = batch_rewards\n",
          "            first = sum(len(b.indices) for b in batches[:mine])\n"
          "            rewards[first : first + len(batch_rewards)] = batch_rewards\n")],
        "tests/test_commands.py::test_rewards_do_not_depend_on_what_shares_a_batch",
    ),
    Bug(
        "scoring drops the last batch",
        [("eval.py", "    batches = batches_by_length(examples)\n",
          "    batches = batches_by_length(examples)\n"
          "    batches = batches[: max(1, len(batches) - 1)]\n")],
        "tests/test_commands.py::test_rewards_do_not_depend_on_what_shares_a_batch",
    ),
    Bug(
        "every epoch has the same order",
        [("data.py", "np.random.default_rng([seed, epoch])", "np.random.default_rng([seed, 0])")],
        "tests/test_batches.py::test_seed_and_epoch_change_the_order_and_nothing_else_does",
    ),
    Bug(
        "--seed does not reach the order of the rows",
        [("train_rm.py", "rows_of_step(train_rows, step, args.batch_size, args.seed)",
          "rows_of_step(train_rows, step, args.batch_size, 0)")],
        "tests/test_run.py::test_the_seed_decides_the_order_of_the_rows",
    ),
    # ------------------------------------------------------------ calibration
    Bug(
        "calibration: the bins are rounded up",
        [("eval.py", "bin_of = np.digitize(confidence, edges[1:-1])",
          "bin_of = np.minimum(np.digitize(confidence, edges[1:-1]) + 1, bins - 1)")],
        "tests/test_eval.py::test_calibration_agrees_with_a_computation_by_hand",
    ),
    Bug(
        "calibration: the labels of the bins are one too high",
        [("eval.py", '"from": float(edges[b])', '"from": float(edges[b + 1])'),
         ("eval.py", '"to": float(edges[b + 1])', '"to": float(edges[min(b + 2, bins)])')],
        "tests/test_eval.py::test_calibration_agrees_with_a_computation_by_hand",
    ),
    Bug(
        "calibration: the error forgets how many pairs a bin has",
        [("eval.py", 'ece += inside.mean() * abs(', "ece += 1 / len(np.unique(bin_of)) * abs(")],
        "tests/test_eval.py::test_calibration_agrees_with_a_computation_by_hand",
    ),
    # ------------------------------------------------------------ stopping and resuming
    Bug(
        "resuming forgets AdamW's moments",
        [("train_rm.py", 'fill(moments[key], tensors.get_tensor(f"{name}/{key}"))', "pass")],
        "tests/test_resume.py::test_a_checkpoint_puts_back_all_that_the_next_step_depends_on",
    ),
    Bug(
        "resuming forgets how many steps AdamW took",
        [("train_rm.py", 'moments["step"] = tensors.get_tensor(f"{name}/step").to(device)',
          'moments["step"] = 0 * tensors.get_tensor(f"{name}/step").to(device)')],
        "tests/test_resume.py::test_a_checkpoint_puts_back_all_that_the_next_step_depends_on",
    ),
    Bug(
        "resuming starts at the beginning of the data",
        [("train_rm.py", "rows_of_step(train_rows, step, args",
          "rows_of_step(train_rows, step - start, args")],
        "tests/test_resume.py::"
        "test_a_resumed_run_goes_through_the_rows_that_the_stopped_one_had_left",
    ),
    Bug(
        "resuming forgets the loss scale",
        [("train_rm.py", '    scaler.load_state_dict(state["scaler"])\n', "")],
        "tests/test_resume.py::test_a_checkpoint_puts_back_all_that_the_next_step_depends_on",
    ),
    Bug(
        "resuming forgets the means since the last log line",
        [("train_rm.py", '    return state["step"], state["since_log"]\n',
          '    return state["step"], []\n')],
        "tests/test_resume.py::test_a_checkpoint_puts_back_all_that_the_next_step_depends_on",
    ),
    Bug(
        "the oldest checkpoint is kept, not the newest",
        [("train_rm.py", "for older in checkpoints(output)[:-1]:",
          "for older in checkpoints(output)[1:]:")],
        "tests/test_run.py::test_evaluations_and_checkpoints_come_at_the_steps_asked_for",
    ),
    # ------------------------------------------------------------ LoRA
    Bug(
        "adapters: α is not divided by the rank",
        [("extras/adapter_settings.py", "        return alpha / rank\n", "        return alpha\n")],
        "tests/extras/test_adapters.py::test_an_adapter_has_the_rewards_that_peft_computes",
    ),
    Bug(
        "LoRA: the change is not scaled in training",
        [("extras/lora.py", "return super().forward(x) + SCALE * change",
          "return super().forward(x) + change")],
        "tests/extras/test_lora.py::test_the_output_is_w_x_plus_b_plus_two_b_a_x_for_every_rank",
    ),
]


# Thought up from the code, before the tests were read.
NEW = [
    # ------------------------------------------------------------ loss.py
    Bug(
        "the logarithm of a sigmoid, which overflows",
        [("loss.py", "losses = -F.logsigmoid(gap - margin)",
          "losses = -torch.log(torch.sigmoid(gap - margin))")],
        "tests/test_loss.py::test_loss_agrees_with_float64_at_any_gap",
    ),
    Bug(
        "the loss is computed in the type that comes in",
        [("loss.py", "    r_chosen, r_rejected = r_chosen.float(), r_rejected.float()\n", "")],
        "tests/test_loss.py::test_loss_of_bfloat16_rewards_is_computed_in_float32",
    ),
    Bug(
        "centering pulls the gap to 0, not the rewards",
        [("loss.py", "(r_chosen + r_rejected).square()", "(r_chosen - r_rejected).square()")],
        "tests/test_loss.py::test_centering_adds_the_square_of_the_sum",
    ),
    Bug(
        "a flipped label forgets the margin",
        [("loss.py", "-F.logsigmoid(-gap - margin)", "-F.logsigmoid(-gap)")],
        "tests/test_loss.py::test_a_flipped_label_with_a_margin_is_lost_by_the_margin",
    ),
    # ------------------------------------------------------------ model.py
    Bug(
        "rotary positions pair neighbours, not halves",
        [("model.py", "    first, second = x.chunk(2, dim=-1)",
          "    first, second = x[..., ::2], x[..., 1::2]")],
        "tests/test_parity.py::"
        "test_rotary_positions_turn_the_two_halves_of_a_head_against_each_other",
    ),
    Bug(
        "the last norm is left out",
        [("model.py", "        return self.norm(x)\n", "        return x\n")],
        "tests/test_parity.py::test_a_layer_adds_what_attention_and_mlp_make_of_normed_states",
    ),
    Bug(
        "the MLP reads what was not normed",
        [("model.py", "self.mlp(self.post_attention_layernorm(x))", "self.mlp(x)")],
        "tests/test_parity.py::test_a_layer_adds_what_attention_and_mlp_make_of_normed_states",
    ),
    Bug(
        "gate and up of the MLP change places",
        [("model.py", "F.silu(self.gate_proj(x)) * self.up_proj(x)",
          "F.silu(self.up_proj(x)) * self.gate_proj(x)")],
        "tests/test_parity.py::test_the_mlp_is_down_of_silu_of_gate_times_up",
    ),
    Bug(
        "epsilon outside the square root",
        [("model.py", "torch.rsqrt(mean_square + self.eps)", "(mean_square.rsqrt() + self.eps)")],
        "tests/test_parity.py::test_rms_norm_written_plainly",
    ),
    Bug(
        "the heads of attention are not put side by side again",
        [("model.py", "mixed.transpose(1, 2).reshape(R, T, -1)", "mixed.reshape(R, T, -1)")],
        "tests/test_parity.py::test_the_heads_of_attention_lie_side_by_side",
    ),
    Bug(
        "checkpointing that needs a gradient at its input",
        [("model.py", "use_reentrant=False", "use_reentrant=True")],
        "tests/extras/test_lora.py::test_recomputed_layers_learn_although_the_embedding_is_frozen",
    ),
    Bug(
        "a mask with pads on the left is taken",
        [("model.py", "if empty.any() | one_after_zero.any():", "if empty.any():")],
        "tests/test_model.py::test_a_mask_that_is_not_ones_then_zeros_is_refused",
    ),
    Bug(
        "a sliding window is not a limit",
        [("model.py", 'limit = min(limit, positive_number(config_json, "sliding_window", where))',
          "pass")],
        "tests/test_parity.py::test_a_window_limits_the_length_only_where_it_is_in_use",
    ),
    Bug(
        "the saved config says two labels",
        [("model.py", '            "num_labels": 1,\n', ""),
         ("model.py", '            "id2label": {"0": "reward"},\n', ""),
         ("model.py", '            "label2id": {"reward": 0},\n', "")],
        "tests/test_model.py::test_the_saved_config_has_one_label_and_no_sigmoid",
    ),
    Bug(
        "NaN in the weights is not looked for",
        [("model.py", "            check_finite(parameter.data, self.files)\n", "")],
        "tests/extras/test_checkpoint_formats.py::"
        "test_a_number_that_is_none_is_named_with_its_file_when_the_weights_are_read",
    ),
    Bug(
        "the sum of the layers is kept in bfloat16",
        [("model.py", "self.embed_tokens(input_ids).float()", "self.embed_tokens(input_ids)")],
        "tests/test_model.py::test_bfloat16_files_are_float32_in_memory_but_for_frozen_weights",
    ),
    # ------------------------------------------------------------ data.py
    Bug(
        "the highest rank is the best",
        [("data.py", '("ranks", -1)', '("ranks", 1)')],
        "tests/test_data.py::test_scores_and_ranks_order_the_responses_and_rank_1_is_the_best",
    ),
    Bug(
        "the seed does not reach the held-out split",
        [("data.py", "json.dumps([seed, identity])", "json.dumps([0, identity])")],
        "tests/test_data.py::test_the_seed_decides_which_prompts_are_held_out",
    ),
    Bug(
        "a prompt of many responses weighs more than one of two",
        [("data.py", "1 / (len(pairs) * rows_in_step)", "1 / rows_in_step")],
        "tests/test_batches.py::test_the_pairs_of_a_row_weigh_one_together_and_have_its_margin",
    ),
    Bug(
        "every example is taken to have two sequences",
        [("data.py", "        before += len(example.sequences)\n", "        before += 2\n")],
        "tests/test_batches.py::test_pairs_point_at_the_sequences_of_their_own_row",
    ),
    Bug(
        "all processes take the same rows",
        [("data.py", "longest_first[process::processes]", "longest_first[::processes]")],
        "tests/test_batches.py::"
        "test_each_row_is_on_one_rank_and_all_ranks_have_equally_many_micro_batches",
    ),
    Bug(
        "the rows of the last, smaller step of an epoch are dropped",
        [("data.py", "steps = math.ceil(count / batch_size)  # of an epoch",
          "steps = max(1, count // batch_size)"),
         ("data.py", "    first = step_of_epoch * count // steps\n",
          "    first = step_of_epoch * batch_size\n"),
         ("data.py", "    end = (step_of_epoch + 1) * count // steps\n",
          "    end = first + batch_size\n")],
        "tests/test_batches.py::test_every_row_comes_once_an_epoch_in_steps_of_equal_size",
    ),
    Bug(
        "a long prompt loses the assistant's header",
        [("data.py", "if excess >= start - bos - self.header_tokens():",
          "if excess >= start - bos:")],
        "tests/test_batches.py::"
        "test_a_prompt_that_is_too_long_loses_its_oldest_tokens_and_nothing_else",
    ),
    Bug(
        "BOS is cut from a long prompt",
        [("data.py", "np.concatenate((sequence[:bos], sequence[bos + excess :]))",
          "sequence[excess:]")],
        "tests/test_batches.py::"
        "test_a_prompt_that_is_too_long_loses_its_oldest_tokens_and_nothing_else",
    ),
    Bug(
        "parts of a message are put together with spaces",
        [("data.py", 'return "".join(texts)', 'return " ".join(texts)')],
        "tests/test_data.py::test_the_parts_of_a_message_are_put_together_as_they_are",
    ),
    Bug(
        "duplicates and contradictions change places in the audit",
        [("data.py", '["duplicates"] += pair in self.pairs',
          '["duplicates"] += reverse in self.pairs'),
         ("data.py", '["contradictions"] += reverse in self.pairs',
          '["contradictions"] += pair in self.pairs')],
        "tests/test_batches.py::test_read_is_kept_plus_left_out_by_reason",
    ),
    Bug(
        "the margin is lost on the way to the file of tokens",
        [("data.py", "known = (score, example.margin, truth,", "known = (score, 0.0, truth,")],
        "tests/test_batches.py::test_what_was_written_is_read_back",
    ),
    Bug(
        "skipped rows are not counted",
        [("data.py", "        self.left_out[error.reason] += 1\n", "")],
        "tests/test_data.py::test_a_bad_row_stops_or_is_counted_and_broken_json_always_stops",
    ),
    Bug(
        "identical responses are trained on",
        [("data.py", '            raise LeftOut("identical responses")\n', "            pass\n")],
        "tests/test_batches.py::test_read_is_kept_plus_left_out_by_reason",
    ),
    Bug(
        "an empty response is trained on",
        [("data.py", '(response[-1]["content"].strip() or is_call(response[-1]))', "True")],
        "tests/test_batches.py::test_read_is_kept_plus_left_out_by_reason",
    ),
    Bug(
        "the pad may be the end token",
        [("data.py", "if pad_id != self.end_id and pad_id < vocab_size:",
          "if pad_id is not None and pad_id < vocab_size:")],
        "tests/test_data.py::test_the_pad_is_never_the_end_token",
    ),
    Bug(
        "the saved tokenizer adds its own BOS once more",
        [("data.py", '"add_bos_token": False', '"add_bos_token": True'),
         ("data.py", 'json.loads(self.backend.to_str()) | {"post_processor": None}',
          "json.loads(self.backend.to_str())")],
        "tests/test_data.py::test_a_saved_tokenizer_adds_no_bos_to_that_of_its_template",
    ),
    # ------------------------------------------------------------ eval.py
    Bug(
        "the error bar draws pairs, not prompts",
        [("eval.py", "    _, group = np.unique(prompt, return_inverse=True)\n",
          "    group = np.arange(len(prompt))\n")],
        "tests/test_eval.py::"
        "test_the_interval_is_the_binomial_one_and_longer_where_pairs_share_prompts",
    ),
    Bug(
        "the temperature is upside down",
        [("eval.py", "np.logaddexp(0, -gaps / T)", "np.logaddexp(0, -gaps * T)")],
        "tests/test_eval.py::"
        "test_the_temperature_has_the_least_loss_on_its_grid_and_undoes_a_scale",
    ),
    Bug(
        "rank puts the worst response first",
        [("eval.py", "np.argsort(-scored.rewards, kind", "np.argsort(scored.rewards, kind")],
        "tests/test_commands.py::test_report_score_rank_and_the_model_itself_agree",
    ),
    Bug(
        "scores do not follow their responses when rank sorts them",
        [("eval.py", "row[field] = [row[field][i] for i in order]", "row[field] = row[field]")],
        "tests/test_commands.py::test_rank_moves_scores_and_ranks_with_their_responses",
    ),
    Bug(
        "the length baseline counts where the shorter response wins",
        [("eval.py", "np.sign(pairs.tokens_chosen - pairs.tokens_rejected)",
          "np.sign(pairs.tokens_rejected - pairs.tokens_chosen)")],
        "tests/test_eval.py::test_every_figure_agrees_with_a_computation_by_hand",
    ),
    Bug(
        "a reward that is NaN counts as a wrong answer",
        [("eval.py", "        if not np.isfinite(r).all():\n", "        if False:\n")],
        "tests/test_eval.py::"
        "test_a_reward_that_is_not_a_number_is_refused_and_not_counted_as_wrong",
    ),
    # ------------------------------------------------------------ train_rm.py
    Bug(
        "the learning rate does not fall to 0",
        [("train_rm.py", "math.cos(math.pi * progress)", "math.cos(math.pi / 2 * progress)")],
        "tests/test_train.py::"
        "test_the_learning_rate_rises_then_falls_to_nothing_along_half_a_cosine",
    ),
    Bug(
        "the first step has no learning rate",
        [("train_rm.py", "peak * (step + 1) / warmup", "peak * step / warmup")],
        "tests/test_train.py::"
        "test_the_learning_rate_rises_then_falls_to_nothing_along_half_a_cosine",
    ),
    Bug(
        "the model with the highest held-out loss is kept",
        [("train_rm.py", 'loss < saved_best(output)["eval_loss"]',
          'not loss < saved_best(output)["eval_loss"] or not (output / BEST).exists()')],
        "tests/test_keep.py::test_the_model_of_the_lowest_held_out_loss_is_saved",
    ),
    Bug(
        "the best model is named in the report and the last one saved",
        [("train_rm.py", "            fill(parameter, tensors.get_tensor(name))\n    return best",
          "            pass\n    return best")],
        "tests/test_keep.py::test_the_model_of_the_lowest_held_out_loss_is_saved",
    ),
    Bug(
        "--keep last is not obeyed",
        [("train_rm.py", 'if done < total and args.keep == "best":', "if done < total:")],
        "tests/test_keep.py::test_the_model_of_the_lowest_held_out_loss_is_saved",
    ),
    Bug(
        "patience looks at the last evaluation only",
        [("train_rm.py", "not min(last) < min(before)", "not losses[-1] < min(before)")],
        "tests/test_keep.py::"
        "test_patience_ends_a_run_after_so_many_evaluations_without_a_lower_loss",
    ),
    Bug(
        "the checkpoint has the number of the step before",
        [("train_rm.py", "save_checkpoint(output, done, model",
          "save_checkpoint(output, step, model")],
        "tests/test_resume.py::test_a_signal_stops_after_the_step_with_a_checkpoint",
    ),
    Bug(
        "resuming loses the log line of its first step",
        [("train_rm.py", '["step"] <= until', '["step"] < until')],
        "tests/test_resume.py::test_log_lines_up_to_the_checkpoint_stay_and_later_ones_go",
    ),
    Bug(
        "two runs may claim the same folder",
        [("train_rm.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB")],
        "tests/test_resume.py::test_no_second_run_writes_into_the_folder_of_one_that_goes_on",
    ),
    Bug(
        "the folder that is new after an earlier run was moved is not claimed",
        [("train_rm.py", "        output.mkdir()\n        claim(output)\n",
          "        output.mkdir()\n")],
        "tests/test_resume.py::test_no_second_run_writes_into_the_folder_of_one_that_goes_on",
    ),
    Bug(
        "a run may be resumed with another learning rate",
        [("train_rm.py", "!= value and name not in MAY_CHANGE_ON_RESUME:", "!= value and False:")],
        "tests/test_resume.py::test_what_would_change_the_run_is_refused_when_it_is_resumed",
    ),
    Bug(
        "the bias is always trained",
        [("train_rm.py", "requires_grad_(args.center_rewards_coefficient > 0)",
          "requires_grad_(True)")],
        "tests/test_train.py::"
        "test_the_bias_trains_only_where_the_centering_penalty_gives_it_a_gradient",
    ),
    Bug(
        "a step that is NaN is taken",
        [("train_rm.py", '    return not math.isfinite(means["grad_norm"])\n',
          "    return False\n")],
        "tests/test_resume.py::test_a_step_without_a_number_stops_the_run_with_all_that_was_before",
    ),
    Bug(
        "the loss scale never falls after an overflow",
        [("train_rm.py", "scaler.update(scaler.get_scale() / 2)",
          "scaler.update(scaler.get_scale())")],
        "tests/test_resume.py::test_an_overflow_in_float16_halves_the_scale_and_the_run_continues",
    ),
    Bug(
        "the saved model is always rounded to bfloat16",
        [("train_rm.py", "dtype = getattr(torch, save_dtype)", "dtype = torch.bfloat16")],
        "tests/test_keep.py::test_the_model_of_the_lowest_held_out_loss_is_saved",
    ),
    Bug(
        "the seed does not reach the weights",
        [("train_rm.py", "torch.manual_seed(args.seed)", "torch.manual_seed(0)")],
        "tests/test_run.py::"
        "test_the_seed_decides_the_weights_that_a_model_from_scratch_starts_with",
    ),
    # ------------------------------------------------------------ extras/
    Bug(
        "packing: the heads of the tokens are mixed up when they are copied",
        [("extras/packing.py", "table = x.transpose(1, 2).reshape(R * T, H * P)",
          "table = x.reshape(R * T, H * P)")],
        "tests/extras/test_packing.py::test_rewards_and_gradients_are_those_of_the_padded_form",
    ),
    Bug(
        "LoRA: B starts at random",
        [("extras/lora.py", "self.lora_B = nn.Parameter(B)",
          "self.lora_B = nn.Parameter(B.uniform_(-bound, bound))")],
        "tests/extras/test_lora.py::test_training_starts_from_exactly_the_model_that_was_given",
    ),
    Bug(
        "LoRA: A and B both start at 0",
        [("extras/lora.py", "A.uniform_(-bound, bound)", "A.zero_()")],
        "tests/extras/test_lora.py::test_a_starts_random_because_two_zeros_would_never_learn",
    ),
    Bug(
        "LoRA: the scale is forgotten when the model is saved",
        [("extras/lora.py", "merged = W.float() + SCALE * (B @ A)", "merged = W.float() + B @ A")],
        "tests/extras/test_lora.py::test_merged_factors_give_the_same_rewards",
    ),
    Bug(
        "LoRA: the value head is frozen too",
        [("extras/lora.py", "        model.model.norm.requires_grad_(False)\n",
          "        model.model.norm.requires_grad_(False)\n"
          "        model.score.requires_grad_(False)\n")],
        "tests/extras/test_lora.py::"
        "test_the_head_is_trained_and_its_bias_stays_as_the_caller_set_it",
    ),
    Bug(
        "--freeze-layers freezes the last layers",
        [("extras/lora.py", "    for layer in layers[:frozen_layers]:\n",
          "    for layer in layers[len(layers) - frozen_layers :]:\n")],
        "tests/extras/test_lora.py::test_frozen_layers_stay_bit_for_bit_and_the_rest_trains",
    ),
    Bug(
        "LoRA is resumed over another base",
        [("train_rm.py", 'if state["base"] != model.base:', "if False:")],
        "tests/test_resume.py::test_frozen_weights_are_not_taken_from_another_model",
    ),
    Bug(
        "used rows: a token that does not occur gets the first row",
        [("extras/used_rows.py", "        return torch.where(is_trained, trained, frozen)\n",
          "        return trained\n")],
        "tests/extras/test_used_rows.py::"
        "test_rewards_stay_the_same_for_tokens_that_occur_and_for_others",
    ),
    Bug(
        "used rows: what was learned is not saved",
        [("extras/used_rows.py", "table = frozen.index_copy(0, module.used, trained)",
          "table = frozen")],
        "tests/extras/test_used_rows.py::test_a_saved_model_has_one_ordinary_table",
    ),
    Bug(
        "adapters: rank stabilisation is ignored",
        [("extras/adapter_settings.py", "return alpha / math.sqrt(rank)", "return alpha / rank")],
        "tests/extras/test_adapters.py::test_an_adapter_has_the_rewards_that_peft_computes",
    ),
    Bug(
        "adapters: a rank of its own is ignored",
        [("extras/adapter_settings.py", 'value = self.own_value("rank_pattern", "r", name)',
          'value = self.values.get("r")')],
        "tests/extras/test_adapters.py::test_an_adapter_has_the_rewards_that_peft_computes",
    ),
    Bug(
        "adapters: the head of the adapter is not read",
        [("extras/adapters.py", "        return [folder / WEIGHTS, folder / HEAD]\n",
          "        return [folder / WEIGHTS]\n")],
        "tests/extras/test_adapters.py::test_an_adapter_has_the_rewards_that_peft_computes",
    ),
    Bug(
        "adapters: GPT-2's matrices are not turned",
        [("extras/adapters.py", "        change = change.T  # GPT-2's files hold (in, out)\n",
          "        pass\n")],
        "tests/extras/test_adapters.py::test_an_adapter_has_the_rewards_that_peft_computes",
    ),
    Bug(
        "adapters: the written α is the rank",
        [("extras/write_adapter.py", "round(rank * lora.SCALE)", "rank")],
        "tests/extras/test_adapters.py::"
        "test_a_lora_run_leaves_an_adapter_with_the_rewards_of_the_run",
    ),
    Bug(
        "grouping: another system turn is the same prompt",
        [("extras/grouping.py", "if field.lower() in PROMPT_FIELDS:",
          'if field.lower() == "prompt":')],
        "tests/extras/test_grouping.py::"
        "test_messages_are_prompts_too_and_other_system_turns_make_other_prompts",
    ),
    Bug(
        "heads: two linear maps without a ReLU between them",
        [("extras/heads.py", "            parts.append(nn.ReLU())\n",
          "            parts.append(nn.Identity())\n")],
        "tests/extras/test_heads.py::test_rewards_are_those_of_linear_relu_linear",
    ),
    Bug(
        "yarn: cos and sin do not grow",
        [("extras/rope_scaling.py", 'slow, rope["attention_factor"]', "slow, 1.0")],
        "tests/extras/test_rope_scaling.py::test_yarn_keeps_fast_pairs_and_slows_slow_ones_down",
    ),
    Bug(
        "a text is rendered with the clock of today",
        [("extras/chat_template.py", "stop_the_clock(source, datetime.datetime.now())", "source")],
        "tests/extras/test_jinja_templates.py::test_the_clock_of_a_template_stands_still",
    ),
    Bug(
        "templates of tools are not used",
        [("extras/chat_template.py", 'tools is not None and "tool_use" in self.templates',
          "False")],
        "tests/extras/test_chat_template.py::test_rows_with_tools_use_the_template_for_tools",
    ),
    Bug(
        "what a template writes after the end token is scored",
        [("extras/chat_template.py",
          "cut.append(stripped if stripped.endswith(self.end_token) else text)",
          "cut.append(text)")],
        "tests/extras/test_chat_template.py::"
        "test_ids_are_those_of_transformers_up_to_the_end_token",
    ),
    Bug(
        "best of a row: a shared first place is a whole win",
        [("extras/report_details.py", "highest[best].sum() / highest.sum()",
          "highest[best].sum()")],
        "tests/extras/test_report_details.py::test_the_best_of_a_row_wins_alone_shares_or_loses",
    ),
]


# Found by changing one operator or number of the code at a time: no test noticed these.
FOUND = [
    Bug(
        "the report calibrates the sum of both rewards",
        [("eval.py", "    gaps = pairs.r_chosen - pairs.r_rejected\n    figures",
          "    gaps = pairs.r_chosen + pairs.r_rejected\n    figures")],
        "tests/test_eval.py::test_every_figure_agrees_with_a_computation_by_hand",
    ),
    Bug(
        "the report has NaN where no chosen response is shorter",
        [("eval.py", "float(misled.mean()) if len(misled) else None", "float(misled.mean())")],
        "tests/test_eval.py::test_every_figure_agrees_with_a_computation_by_hand",
    ),
    Bug(
        "a token id one above the vocabulary is taken",
        [("eval.py", "ids.max() < model.config.vocab_size",
          "ids.max() <= model.config.vocab_size")],
        "tests/test_commands.py::test_a_tokenizer_of_another_model_is_noticed",
    ),
    Bug(
        "report does not ask whether tokenizer and model belong together",
        [("eval.py", "check_ids(example.sequences, scorer.model, path)", "pass")],
        "tests/test_commands.py::test_a_report_with_the_tokenizer_of_another_model_is_refused",
    ),
    Bug(
        "--show-token names the position after the token",
        [("eval.py", '"position": len(ids) - 1', '"position": len(ids)')],
        "tests/test_commands.py::test_the_scored_token_is_the_end_token",
    ),
    Bug(
        "score says nothing of odd texts",
        [("eval.py", "        self.notes.update(example.notes)\n", "")],
        "tests/test_commands.py::test_what_happened_to_the_texts_is_said_at_the_end",
    ),
    Bug(
        "rank gives back only the first turn of an answer",
        [("eval.py", 'return response[0]["content"] if len(response) == 1 else response',
          'return response[0]["content"]')],
        "tests/test_commands.py::test_a_row_of_training_is_ranked_with_all_turns_of_its_answers",
    ),
    Bug(
        "a scored row stays in a buffer",
        [("eval.py", "print(json.dumps(row | added), flush=True)",
          "print(json.dumps(row | added))")],
        "tests/test_commands.py::test_a_row_is_written_at_once",
    ),
    Bug(
        "the saved config has its rope rule for transformers 5 only",
        [("model.py", '    if "rope_theta" not in rope:\n', "    if True:\n")],
        "tests/test_parity.py::test_a_saved_config_has_its_rope_rule_for_transformers_4_too",
    ),
    Bug(
        "the first response is not compared to find where responses begin",
        [("data.py", "    for other in sequences[1:]:\n", "    for other in sequences[2:]:\n")],
        "tests/test_batches.py::"
        "test_the_shared_beginning_is_that_of_all_sequences_in_any_order",
    ),
    Bug(
        "settings of this program are saved with the tokenizer",
        [("data.py", "            config.pop(of_this_program, None)\n", "            pass\n")],
        "tests/test_data.py::test_a_saved_tokenizer_adds_no_bos_to_that_of_its_template",
    ),
    Bug(
        "LoRA: the end of a base is not looked at when a run is resumed",
        [("extras/lora.py", "file.seek(max(0, size - 2**20))", "file.seek(size)")],
        "tests/extras/test_lora.py::"
        "test_a_base_that_differs_at_its_beginning_or_end_is_another_base",
    ),
    Bug(
        "used rows: the first token of the data is not looked at",
        [("extras/used_rows.py", "for first in range(0, len(ids), CHUNK):",
          "for first in range(1, len(ids), CHUNK):")],
        "tests/extras/test_used_rows.py::test_a_file_of_ids_is_read_in_chunks",
    ),
]

BUGS = EARLIER + NEW + FOUND
