"""Tiny models of the real classes, with random weights, as folders and files that the real loading code reads."""

import string

import torch

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} answer {% endif %}"
)


def vision_language(folder, template=TEMPLATE, seed=0):
    """Write a LLaVA of a few thousand weights, whose tokenizer knows one token a character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    characters = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *string.printable]
    words = Tokenizer(models.WordLevel({one: i for i, one in enumerate(characters)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=16, **sizes),
        text_config=LlamaConfig(
            vocab_size=len(characters), num_key_value_heads=2, max_position_embeddings=1024, **sizes
        ),
        image_token_index=4,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # small random weights would answer every image with the same letter
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    return folder


def sentences(folder):
    """Write a sentence-transformers model: a BERT of a few thousand weights and mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    inner = folder.with_name(folder.name + "-bert")
    inner.mkdir()
    letters = list(string.ascii_lowercase)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
    (inner / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizerFast(vocab=str(inner / "vocab.txt")).save_pretrained(inner)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(inner)
    encoder = Transformer(str(inner))
    SentenceTransformer(modules=[encoder, Pooling(16)], device="cpu").save(str(folder))
    return folder


def two_towers(folder, size=32, quick_gelu=False):
    """Write an open_clip model of a few thousand weights and the vocabulary's."""
    import json

    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    config = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": size, "layers": 2, "width": 16, "head_width": 8, "patch_size": size // 4},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():  # random text features all but coincide; these do not
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder
