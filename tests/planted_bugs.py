"""The planted bugs: mistakes that were once made in this project or may be made, as data."""
from typing import NamedTuple


class Bug(NamedTuple):
    """One mistake."""

    name: str
    changes: list  # (file, what stands there, what stands there instead)
    guard: str  # file::test


NEW = [
    # ------------------------------------------------------------ loss.py
    Bug(
        "the logarithm of a sigmoid, which overflows",
        [("loss.py", "losses = -F.logsigmoid(gap - margin)",
          "losses = -torch.log(torch.sigmoid(gap - margin))")],
        "",
    ),
    Bug(
        "the loss is computed in the type that comes in",
        [("loss.py", "    r_chosen, r_rejected = r_chosen.float(), r_rejected.float()\n", "")],
        "",
    ),
    Bug(
        "centering pulls the gap to 0, not the rewards",
        [("loss.py", "(r_chosen + r_rejected).square()", "(r_chosen - r_rejected).square()")],
        "",
    ),
    Bug(
        "a flipped label forgets the margin",
        [("loss.py", "-F.logsigmoid(-gap - margin)", "-F.logsigmoid(-gap)")],
        "",
    ),
    # ------------------------------------------------------------ model.py
    Bug(
        "rotary positions pair neighbours, not halves",
        [("model.py", "    first, second = x.chunk(2, dim=-1)",
          "    first, second = x[..., ::2], x[..., 1::2]")],
        "",
    ),
    Bug(
        "the last norm is left out",
        [("model.py", "        return self.norm(x)\n", "        return x\n")],
        "",
    ),
    Bug(
        "the MLP reads what was not normed",
        [("model.py", "self.mlp(self.post_attention_layernorm(x))", "self.mlp(x)")],
        "",
    ),
    Bug(
        "gate and up of the MLP change places",
        [("model.py", "F.silu(self.gate_proj(x)) * self.up_proj(x)",
          "F.silu(self.up_proj(x)) * self.gate_proj(x)")],
        "",
    ),
    Bug(
        "epsilon outside the square root",
        [("model.py", "torch.rsqrt(mean_square + self.eps)", "(mean_square.rsqrt() + self.eps)")],
        "",
    ),
    Bug(
        "the heads of attention are not put side by side again",
        [("model.py", "mixed.transpose(1, 2).reshape(R, T, -1)", "mixed.reshape(R, T, -1)")],
        "",
    ),
    Bug(
        "checkpointing that needs a gradient at its input",
        [("model.py", "use_reentrant=False", "use_reentrant=True")],
        "",
    ),
    Bug(
        "a mask with pads on the left is taken",
        [("model.py", "if empty.any() | one_after_zero.any():", "if empty.any():")],
        "",
    ),
    Bug(
        "a sliding window is not a limit",
        [("model.py", "        limit = min(limit, positive_number(config_json, \"sliding_window\", where))\n",
          "        pass\n")],
        "",
    ),
    Bug(
        "the saved config says two labels",
        [("model.py", '            "num_labels": 1,\n', ""),
         ("model.py", '            "id2label": {"0": "reward"},\n', ""),
         ("model.py", '            "label2id": {"reward": 0},\n', "")],
        "",
    ),
    Bug(
        "NaN in the weights is not looked for",
        [("model.py", "            check_finite(parameter.data, self.files)\n", "")],
        "",
    ),
    Bug(
        "the sum of the layers is kept in bfloat16",
        [("model.py", "self.embed_tokens(input_ids).float()", "self.embed_tokens(input_ids)")],
        "",
    ),
    # ------------------------------------------------------------ data.py
    Bug(
        "the highest rank is the best",
        [("data.py", '("ranks", -1)', '("ranks", 1)')],
        "",
    ),
    Bug(
        "the seed does not reach the held-out split",
        [("data.py", "json.dumps([seed, identity])", "json.dumps([0, identity])")],
        "",
    ),
    Bug(
        "a prompt of many responses weighs more than one of two",
        [("data.py", "1 / (len(pairs) * rows_in_step)", "1 / rows_in_step")],
        "",
    ),
    Bug(
        "every example is taken to have two sequences",
        [("data.py", "        before += len(example.sequences)\n", "        before += 2\n")],
        "",
    ),
    Bug(
        "all processes take the same rows",
        [("data.py", "longest_first[process::processes]", "longest_first[::processes]")],
        "",
    ),
    Bug(
        "the rows of the last, smaller step of an epoch are dropped",
        [("data.py", "steps = math.ceil(count / batch_size)  # of an epoch",
          "steps = max(1, count // batch_size)"),
         ("data.py", "    first = step_of_epoch * count // steps\n",
          "    first = step_of_epoch * batch_size\n"),
         ("data.py", "    end = (step_of_epoch + 1) * count // steps\n",
          "    end = first + batch_size\n")],
        "",
    ),
    Bug(
        "a long prompt loses the assistant's header",
        [("data.py", "if excess >= start - bos - self.header_tokens():",
          "if excess >= start - bos:")],
        "",
    ),
    Bug(
        "BOS is cut from a long prompt",
        [("data.py", "np.concatenate((sequence[:bos], sequence[bos + excess :]))",
          "sequence[excess:]")],
        "",
    ),
    Bug(
        "parts of a message are put together with spaces",
        [("data.py", 'return "".join(texts)', 'return " ".join(texts)')],
        "",
    ),
    Bug(
        "duplicates and contradictions change places in the audit",
        [("data.py", '["duplicates"] += pair in self.pairs', '["duplicates"] += reverse in self.pairs'),
         ("data.py", '["contradictions"] += reverse in self.pairs',
          '["contradictions"] += pair in self.pairs')],
        "",
    ),
    Bug(
        "the margin is lost on the way to the file of tokens",
        [("data.py", "known = (score, example.margin, truth,", "known = (score, 0.0, truth,")],
        "",
    ),
    Bug(
        "skipped rows are not counted",
        [("data.py", "        self.left_out[error.reason] += 1\n", "")],
        "",
    ),
    Bug(
        "identical responses are trained on",
        [("data.py", '            raise LeftOut("identical responses")\n', "            pass\n")],
        "",
    ),
    Bug(
        "an empty response is trained on",
        [("data.py", '            raise LeftOut("empty response")\n', "            pass\n")],
        "",
    ),
    Bug(
        "the pad may be the end token",
        [("data.py", "if pad_id != self.end_id and pad_id < vocab_size:",
          "if pad_id is not None and pad_id < vocab_size:")],
        "",
    ),
    Bug(
        "the saved tokenizer adds its own BOS once more",
        [("data.py", '"add_bos_token": False', '"add_bos_token": True'),
         ("data.py", 'json.loads(self.backend.to_str()) | {"post_processor": None}',
          "json.loads(self.backend.to_str())")],
        "",
    ),
    # ------------------------------------------------------------ eval.py
    Bug(
        "the error bar draws pairs, not prompts",
        [("eval.py", "    _, group = np.unique(prompt, return_inverse=True)\n",
          "    group = np.arange(len(prompt))\n")],
        "",
    ),
    Bug(
        "the temperature is upside down",
        [("eval.py", "np.logaddexp(0, -gaps / T)", "np.logaddexp(0, -gaps * T)")],
        "",
    ),
    Bug(
        "rank puts the worst response first",
        [("eval.py", "np.argsort(-scored.rewards, kind", "np.argsort(scored.rewards, kind")],
        "",
    ),
    Bug(
        "scores do not follow their responses when rank sorts them",
        [("eval.py", "row[field] = [row[field][i] for i in order]", "row[field] = row[field]")],
        "",
    ),
    Bug(
        "the length baseline counts where the shorter response wins",
        [("eval.py", "np.sign(pairs.tokens_chosen - pairs.tokens_rejected)",
          "np.sign(pairs.tokens_rejected - pairs.tokens_chosen)")],
        "",
    ),
    Bug(
        "a reward that is NaN counts as a wrong answer",
        [("eval.py", "        if not np.isfinite(r).all():\n", "        if False:\n")],
        "",
    ),
    # ------------------------------------------------------------ train_rm.py
    Bug(
        "the learning rate does not fall to 0",
        [("train_rm.py", "math.cos(math.pi * progress)", "math.cos(math.pi / 2 * progress)")],
        "",
    ),
    Bug(
        "the first step has no learning rate",
        [("train_rm.py", "peak * (step + 1) / warmup", "peak * step / warmup")],
        "",
    ),
    Bug(
        "the model with the highest held-out loss is kept",
        [("train_rm.py", 'loss < saved_best(output)["eval_loss"]',
          'not loss < saved_best(output)["eval_loss"] or not (output / BEST).exists()')],
        "",
    ),
    Bug(
        "the best model is named in the report and the last one saved",
        [("train_rm.py", "            fill(parameter, tensors.get_tensor(name))\n    return best",
          "            pass\n    return best")],
        "",
    ),
    Bug(
        "--keep last is not obeyed",
        [("train_rm.py", 'if done < total and args.keep == "best":', "if done < total:")],
        "",
    ),
    Bug(
        "patience looks at the last evaluation only",
        [("train_rm.py", "not min(last) < min(before)", "not losses[-1] < min(before)")],
        "",
    ),
    Bug(
        "the checkpoint has the number of the step before",
        [("train_rm.py", "save_checkpoint(output, done, model", "save_checkpoint(output, step, model")],
        "",
    ),
    Bug(
        "resuming loses the log line of its first step",
        [("train_rm.py", '["step"] <= until', '["step"] < until')],
        "",
    ),
    Bug(
        "a run may be resumed with another learning rate",
        [("train_rm.py", "!= value and name not in MAY_CHANGE_ON_RESUME:", "!= value and False:")],
        "",
    ),
    Bug(
        "the bias is always trained",
        [("train_rm.py", "requires_grad_(args.center_rewards_coefficient > 0)",
          "requires_grad_(True)")],
        "",
    ),
    Bug(
        "a step that is NaN is taken",
        [("train_rm.py", '    return not math.isfinite(means["grad_norm"])\n', "    return False\n")],
        "",
    ),
    Bug(
        "the loss scale never falls after an overflow",
        [("train_rm.py", "scaler.update(scaler.get_scale() / 2)", "pass")],
        "",
    ),
    Bug(
        "the saved model is always rounded to bfloat16",
        [("train_rm.py", "dtype = getattr(torch, save_dtype)", "dtype = torch.bfloat16")],
        "",
    ),
    Bug(
        "the seed does not reach the weights",
        [("train_rm.py", "torch.manual_seed(args.seed)", "torch.manual_seed(0)")],
        "",
    ),
    # ------------------------------------------------------------ extras/
    Bug(
        "packing: a response begins where the row is, for its attention",
        [("extras/packing.py", "table = x.transpose(1, 2).reshape(R * T, H * P)",
          "table = x.reshape(R * T, H * P)")],
        "",
    ),
    Bug(
        "LoRA: B starts at random",
        [("extras/lora.py", "self.lora_B = nn.Parameter(B)",
          "self.lora_B = nn.Parameter(B.uniform_(-bound, bound))")],
        "",
    ),
    Bug(
        "LoRA: A and B both start at 0",
        [("extras/lora.py", "A.uniform_(-bound, bound)", "A.zero_()")],
        "",
    ),
    Bug(
        "LoRA: the scale is forgotten when the model is saved",
        [("extras/lora.py", "merged = W.float() + SCALE * (B @ A)", "merged = W.float() + B @ A")],
        "",
    ),
    Bug(
        "LoRA: the value head is frozen too",
        [("extras/lora.py", "        model.model.norm.requires_grad_(False)\n",
          "        model.model.norm.requires_grad_(False)\n"
          "        model.score.requires_grad_(False)\n")],
        "",
    ),
    Bug(
        "--freeze-layers freezes the last layers",
        [("extras/lora.py", "    for layer in layers[:frozen_layers]:\n",
          "    for layer in layers[len(layers) - frozen_layers :]:\n")],
        "",
    ),
    Bug(
        "LoRA is resumed over another base",
        [("train_rm.py", 'if state["base"] != model.base:', "if False:")],
        "",
    ),
    Bug(
        "used rows: a token that does not occur gets the first row",
        [("extras/used_rows.py", "        return torch.where(is_trained, trained, frozen)\n",
          "        return trained\n")],
        "",
    ),
    Bug(
        "used rows: what was learned is not saved",
        [("extras/used_rows.py", "table = frozen.index_copy(0, module.used, trained)",
          "table = frozen")],
        "",
    ),
    Bug(
        "adapters: rank stabilisation is ignored",
        [("extras/adapter_settings.py", "return alpha / math.sqrt(rank)", "return alpha / rank")],
        "",
    ),
    Bug(
        "adapters: a rank of its own is ignored",
        [("extras/adapter_settings.py", 'value = self.own_value("rank_pattern", "r", name)',
          'value = self.values.get("r")')],
        "",
    ),
    Bug(
        "adapters: the head of the adapter is not read",
        [("extras/adapters.py", "        return [folder / WEIGHTS, folder / HEAD]\n",
          "        return [folder / WEIGHTS]\n")],
        "",
    ),
    Bug(
        "adapters: GPT-2's matrices are not turned",
        [("extras/adapters.py", "        change = change.T  # GPT-2's files hold (in, out)\n",
          "        pass\n")],
        "",
    ),
    Bug(
        "adapters: the written α is the rank",
        [("extras/write_adapter.py", "round(rank * lora.SCALE)", "rank")],
        "",
    ),
    Bug(
        "grouping: another system turn is the same prompt",
        [("extras/grouping.py", "if field.lower() in PROMPT_FIELDS:", 'if field.lower() == "prompt":')],
        "",
    ),
    Bug(
        "heads: two linear maps without a ReLU between them",
        [("extras/heads.py", "            parts.append(nn.ReLU())\n",
          "            parts.append(nn.Identity())\n")],
        "",
    ),
    Bug(
        "yarn: cos and sin do not grow",
        [("extras/rope_scaling.py", 'slow, rope["attention_factor"]', "slow, 1.0")],
        "",
    ),
    Bug(
        "a text is rendered with the clock of today",
        [("extras/chat_template.py", "stop_the_clock(source, datetime.datetime.now())", "source")],
        "",
    ),
    Bug(
        "templates of tools are not used",
        [("extras/chat_template.py", 'has_tools = tools is not None and "tool_use" in self.templates',
          "has_tools = False")],
        "",
    ),
    Bug(
        "what a template writes after the end token is scored",
        [("extras/chat_template.py",
          "cut.append(stripped if stripped.endswith(self.end_token) else text)",
          "cut.append(text)")],
        "",
    ),
    Bug(
        "best of a row: a shared first place is a whole win",
        [("extras/report_details.py", "highest[best].sum() / highest.sum()", "highest[best].sum()")],
        "",
    ),
]
