"""Settings that every run shares; the other files state only how they differ."""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            task=config_dict.placeholder(str),  # "vq" or "mgt"
            seed=0,
            steps=10_000,
            batch_size=32,
            start_from="",  # run or model directory whose parameters to start from
            log_every=20,
            eval_every=500,
            eval_batches=8,
            sample_edits=0,  # held-out pairs that are edited at each evaluation, into the folder `samples`
            accumulate=1,  # parts that a batch is computed in, one after another
            mesh=dict(data=1, fsdp=-1, tensor=1, context=1),  # devices along each axis; -1 is what is left
            checkpoint=dict(
                every=500, keep=2, keep_every=0
            ),  # keep: the latest; besides, of those saved at evaluations, the best
            watchdog=dict(
                seconds=0.0, end=False
            ),  # after how long without a step stacks are printed; end the process, too
            guard=dict(
                max_loss=100.0, skip=0
            ),  # how many steps may be left out because their loss is larger, or not finite
            data=dict(
                size=64,
                seed=0,
                objects="core",  # or "all", "rich": see data/variety.py
                tokens="",  # folders of token records, FOLDER or FOLDER:WEIGHT,FOLDER:WEIGHT; '' draws scenes
                heldout="",  # the same, for evaluation
                categories="",  # CATEGORY:WEIGHT,...; those left out have 1
                threads=1,
                workers=0,  # processes that read ahead
                bad_records=100,  # how many of a process may be unreadable
            ),
            optimizer=dict(
                learning_rate=1e-4,
                schedule="constant",
                warmup_steps=0,
                total_steps=10_000,  # where 'cosine' and 'wsd' reach 0
                decay_steps=0,  # of 'wsd'
                undecayed="released",  # what weight decay spares; 'no_norms' spares all norms
                first_moment="float32",  # or 'bfloat16'
                beta1=0.9,
                beta2=0.999,
                weight_decay=1e-2,
                clip_norm=10.0,
                ema_decay=0.0,  # 0 keeps no average
            ),
            model=dict(),
            loss=dict(),
            lora=dict(
                rank=0, alpha=32.0, targets=("to_q", "to_k", "to_v"), scope="all"
            ),  # rank 0 trains the model itself
        )
    )
