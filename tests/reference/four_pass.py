"""The slow, obvious HACL step: every sequence through the stock model by itself, and the losses as Python loops.

Image-only sequence, caption, hallucinated caption and generation sequence are separate calls, as in the paper
(arXiv 2312.06968, section 3); nothing is packed, padded, cached or shared.
"""

import torch
import torch.nn.functional as F


def states_of(model, ids, pixels, layer):
    """States (T, D) of one sequence run alone through the stock model: (after the final norm, at `layer`)."""
    inputs = {"input_ids": torch.tensor([ids])}
    if pixels:
        inputs["pixel_values"] = torch.cat([image["pixel_values"] for image in pixels])
    output = model.model(**inputs, output_hidden_states=True, use_cache=False)
    final = output.last_hidden_state[0]
    if layer is None:
        return final, final
    blocks = len(model.model.language_model.layers)
    if layer < blocks:
        return final, output.hidden_states[layer][0]
    captured = []
    handle = model.model.language_model.norm.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    model.model(**inputs, use_cache=False)
    handle.remove()
    return final, captured[0][0]


def pooled(states, start, end, pool):
    return states[end - 1] if pool == "last" else states[start:end].mean(0)


def four_pass_loss(hacl, samples):
    """Loss of a batch of `Sample`s: returns (total, lm, contrastive) with the graph of the separate passes."""
    objective, model = hacl.objective, hacl.adapter.model
    token_losses, images, captions, hallucinated = [], [], [], []
    margins = []
    for sample in samples:
        ids = sample.generation.ids
        final, _ = states_of(model, ids, sample.pixels, objective.layer)
        lm_sum, tokens = label_loss(model, final, sample.generation)
        token_losses.append((lm_sum, tokens))
        for sequence in sample.hallucinated_generations:
            other, _ = states_of(model, sequence.ids, sample.pixels, objective.layer)
            margins.append((-lm_sum) - (-label_loss(model, other, sequence)[0]))
        if sample.contrastive_image:
            if sample.image_root is not None:
                root = sample.image_root.ids
                _, states = states_of(model, root, sample.pixels, objective.layer)
                last = len(root)
                image = states[last - 1] if objective.image_pool == "last" else states[: last - 1].mean(0)
            elif objective.form == "eos_branch":
                root = [*ids[: sample.generation.image_spans[0][1]], model.config.text_config.eos_token_id]
                _, states = states_of(model, root, sample.pixels, objective.layer)
                image = states[-1]
            else:
                start, end = sample.generation.image_spans[0]
                _, states = states_of(model, ids[:end], sample.pixels, objective.layer)
                image = pooled(states, start, end, objective.image_pool)
        else:
            image = None
        images.append(image)
        captions.append([text_state(hacl, root) for root in sample.caption_roots])
        hallucinated.append([text_state(hacl, root) for root in sample.hallucinated_roots])
    lm = sum(loss for loss, _ in token_losses) / max(1, sum(tokens for _, tokens in token_losses))
    total = objective.lm_weight * lm
    contrastive = torch.zeros((), dtype=lm.dtype)
    if objective.contrastive_weight:
        contrastive = info_nce(hacl, images, captions, hallucinated)
        total = total + objective.contrastive_weight * contrastive
    if margins:
        beta, margin = objective.likelihood_margin_beta, objective.likelihood_margin
        mean = torch.stack([-F.logsigmoid(beta * (m - margin)) for m in margins]).mean()
        total = total + objective.likelihood_margin_weight * mean
    return total, lm, contrastive


def text_state(hacl, root):
    objective = hacl.objective
    _, states = states_of(hacl.adapter.model, root, [], objective.layer)
    return states[-1] if objective.text_pool == "last" else states[1:-1].mean(0)


def label_loss(model, states, sequence):
    total, tokens = states.new_zeros(()), 0
    for position, is_label in enumerate(sequence.is_label):
        if is_label and position:
            logits = model.lm_head(states[position - 1])
            total = total - F.log_softmax(logits, dim=-1)[sequence.ids[position]]
            tokens += 1
    return total, tokens


def info_nce(hacl, images, captions, hallucinated):
    """Both directions, one caption per image: i2t over captions and the chosen hallucinated ones, t2i over images."""
    inverse_temperature = hacl.heads.log_inverse_temperature().exp().squeeze()
    v = [None if s is None else F.normalize(hacl.heads.project_image(s), dim=-1) for s in images]
    t = [[F.normalize(hacl.heads.project_text(s), dim=-1) for s in row] for row in captions]
    h = [[F.normalize(hacl.heads.project_text(s), dim=-1) for s in row] for row in hallucinated]
    anchors = [i for i in range(len(v)) if v[i] is not None and t[i]]
    i2t, t2i = [], []
    for i in anchors:
        columns = [t[j][0] for j in range(len(t)) if t[j]]
        target = [j for j in range(len(t)) if t[j]].index(i)
        scope = [i] if hacl.objective.hard_scope == "own" else range(len(h))
        columns = columns + [x for j in scope for x in h[j]]
        logits = torch.stack([v[i] @ column for column in columns]) * inverse_temperature
        i2t.append(-F.log_softmax(logits, dim=0)[target])
        present = [j for j in range(len(v)) if v[j] is not None]
        logits = torch.stack([t[i][0] @ v[j] for j in present]) * inverse_temperature
        t2i.append(-F.log_softmax(logits, dim=0)[present.index(i)])
    return (torch.stack(i2t).mean() + torch.stack(t2i).mean()) / 2
