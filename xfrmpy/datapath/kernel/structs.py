"""The C structures of <linux/xfrm.h> that we use, as tables over precompiled structs.

Each table is the C declaration in its order, with the compiler's padding written out
(`pad="3x"`), nested structures named in place. Only layouts: which message carries what is in
`messages.py`, what the values mean in `sad.py` and `spd.py`. The tests freeze sizes and offsets
against the kernel's own header, those of a 64-bit process on a 64-bit kernel.
"""

from __future__ import annotations

from xfrmpy.datapath.netlink.layout import Layout

ADDRESS = "16s"  # xfrm_address_t: IPv4 in the first four octets

ID = Layout(daddr=ADDRESS, spi="N", proto="B", pad="3x")

SELECTOR = Layout(
    daddr=ADDRESS,
    saddr=ADDRESS,
    dport="n",
    dport_mask="n",
    sport="n",
    sport_mask="n",
    family="H",
    prefixlen_d="B",
    prefixlen_s="B",
    proto="B",
    pad="3x",
    ifindex="i",
    user="I",
)

LIFETIME_CFG = Layout(
    soft_byte_limit="Q",
    hard_byte_limit="Q",
    soft_packet_limit="Q",
    hard_packet_limit="Q",
    soft_add_expires_seconds="Q",
    hard_add_expires_seconds="Q",
    soft_use_expires_seconds="Q",
    hard_use_expires_seconds="Q",
)

LIFETIME_CUR = Layout(bytes="Q", packets="Q", add_time="Q", use_time="Q")

STATS = Layout(replay_window="I", replay="I", integrity_failed="I")

USERSA_INFO = Layout(
    sel=SELECTOR,
    id=ID,
    saddr=ADDRESS,
    lft=LIFETIME_CFG,
    curlft=LIFETIME_CUR,
    stats=STATS,
    seq="I",
    reqid="I",
    family="H",
    mode="B",
    replay_window="B",
    flags="B",
    pad="7x",
)

USERSA_ID = Layout(daddr=ADDRESS, spi="N", family="H", proto="B", pad="x")

USERSPI_INFO = Layout(info=USERSA_INFO, min="I", max="I")

USERPOLICY_INFO = Layout(
    sel=SELECTOR,
    lft=LIFETIME_CFG,
    curlft=LIFETIME_CUR,
    priority="I",
    index="I",
    dir="B",
    action="B",
    flags="B",
    share="B",
    pad="4x",
)

USERPOLICY_ID = Layout(sel=SELECTOR, index="I", dir="B", pad="3x")

USER_TMPL = Layout(
    id=ID,
    family="H",
    pad0="2x",
    saddr=ADDRESS,
    reqid="I",
    mode="B",
    share="B",
    optional="B",
    pad1="x",
    aalgos="I",
    ealgos="I",
    calgos="I",
)

USER_ACQUIRE = Layout(
    id=ID,
    saddr=ADDRESS,
    sel=SELECTOR,
    policy=USERPOLICY_INFO,
    aalgos="I",
    ealgos="I",
    calgos="I",
    seq="I",
)

USER_EXPIRE = Layout(state=USERSA_INFO, hard="B", pad="7x")

USER_MAPPING = Layout(
    id=USERSA_ID,
    reqid="I",
    old_saddr=ADDRESS,
    new_saddr=ADDRESS,
    old_sport="n",
    new_sport="n",
)

ENCAP_TMPL = Layout(encap_type="H", encap_sport="n", encap_dport="n", pad="2x", encap_oa=ADDRESS)

ALGO = Layout(alg_name="64s", alg_key_len="I")

ALGO_AUTH = Layout(alg_name="64s", alg_key_len="I", alg_trunc_len="I")

ALGO_AEAD = Layout(alg_name="64s", alg_key_len="I", alg_icv_len="I")

REPLAY_STATE_ESN = Layout(
    bmp_len="I", oseq="I", seq="I", oseq_hi="I", seq_hi="I", replay_window="I"
)

REPLAY_STATE = Layout(oseq="I", seq="I", bitmap="I")

AEVENT_ID = Layout(sa=USERSA_ID, saddr=ADDRESS, flags="I", reqid="I")

USER_MIGRATE = Layout(
    old_daddr=ADDRESS,
    old_saddr=ADDRESS,
    new_daddr=ADDRESS,
    new_saddr=ADDRESS,
    proto="B",
    mode="B",
    reserved="H",
    reqid="I",
    old_family="H",
    new_family="H",
)

USER_OFFLOAD = Layout(ifindex="i", flags="B", pad="3x")

USERPOLICY_DEFAULT = Layout(**{"in": "B", "fwd": "B", "out": "B"})

MARK = Layout(v="I", m="I")

FLAG = Layout()
"""An attribute that says all by being there."""

U8 = Layout(value="B")

U16 = Layout(value="H")

U32 = Layout(value="I")

U64 = Layout(value="Q")
