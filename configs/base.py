"""Settings that every run shares; the other files state only how they differ."""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            task=config_dict.placeholder(str),  # "vq" or "mgt"
            seed=0,
            steps=10_000,
            batch_size=32,
            start_from="",  # workdir of a run whose parameters to start from
            log_every=20,
            eval_every=500,
            eval_batches=8,
            checkpoint=dict(every=500, keep=2),
            data=dict(size=64, seed=0, objects="core", tokens="", threads=1),
            optimizer=dict(
                learning_rate=1e-4,
                schedule="constant",
                warmup_steps=0,
                total_steps=10_000,  # where 'cosine' and 'wsd' reach 0
                decay_steps=0,  # of 'wsd'
                beta1=0.9,
                beta2=0.999,
                weight_decay=1e-2,
                clip_norm=10.0,
                ema_decay=0.0,  # 0 keeps no average
            ),
            model=dict(),
            loss=dict(),
        )
    )
