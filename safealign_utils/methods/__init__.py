"""One loss, four levers: what each paper sets of `loss.preference_loss`, a file each.

The first three levers are columns and rows of the table of pairs, so a method is a function of that
table; the fourth is a callable that `train.align` asks at every step.

paper                                lever           file             function
SafeDPO            2505.20065        winner, margin  safedpo          safedpo
C-DPO              2403.02475        winner          cdpo             relabel; cdpo, the loop
Selective-DPO      2507.07725        tokens          selective        TopTokens
DOG-DPO            2606.07678        pairs           dog              dog_d, dog

DPO-safebetter     2505.20065        pairs           baselines        dpo_safebetter
MODPO              2310.03708        margin          baselines        modpo
MoCAN, PeCAN       2405.19544        winner          baselines        mocan_lambda, implicit_scores
SACPO, P-SACPO     2404.11049        reference       baselines        sacpo, mix
IPO                2310.12036        link            ipo              ipo
cDPO               (not stated)      winner          label_noise      smoothed
rDPO               2403.00409        winner, link    label_noise      smoothed and robust
GDPO               2409.06691        link            label_noise      geometric
distilled DPO      2405.19316        link            label_noise      distilled
Dr. DPO            (not stated)      link            label_noise      SoftMinimum
DCKD               (not stated)      none: a teacher distillation     distil
BFPO, BSO          2408.15313,       margin, link    baselines        bfpo and square, bso and sba
                   2605.12339
SePO, TIS-DPO      2408.13518,       tokens          token_controls   sepo, tis_dpo
                   2410.04350
BeeS and others    2502.14560, ...   pairs           pair_controls    by_margin, easiest_half, ...
PPO-Lagrangian     2310.12773        none: on-policy ppo              ppo_lagrangian

A *link* link(z, beta) replaces the logistic loss of the logit z; link(z, beta, p) knows the label's
probability too. `token_controls` and `pair_controls` hold also what the token and the pairs lever
are held against, at the same budget.
"""
