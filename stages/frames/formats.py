"""The list of accepted file formats. Each is complete in one file.

A playlist, a manifest or a concatenation names other files, which an attacker could choose freely.
The files it names can also change while it stays the same. FFmpeg gets a list of allowed formats
instead of forbidden ones, because a new version may add another format of that kind.
"""

from pathlib import Path

VIDEO = (
    "3g2,3gp,amv,apng,asf,asf_o,av1,avi,avs,avs2,avs3,bink,cavsvideo,cdxl,cine,dhav,dirac,dnxhd,"
    "dv,evc,film_cpk,flic,flv,gdv,gif,gxf,h261,h263,h264,hevc,ico,ifv,image2,ipmovie,ivf,"
    "jpegxl_anim,kux,live_flv,lmlm4,lxf,m4a,m4v,matroska,mgsts,mj2,mjpeg,mjpeg_2000,mov,mp4,mpeg,"
    "mpegts,mpegvideo,mpjpeg,mtv,mv,mvi,mxf,mxg,nsv,nut,nuv,obu,ogg,pmp,pva,r3d,rl2,rm,roq,"
    "smjpeg,smk,swf,thp,vc1,vc1test,vivo,vvc,webm,wtv,xmv,yuv4mpegpipe"
)
"""Containers and streams that may hold video."""
IMAGES = (
    "bmp_pipe,dds_pipe,dpx_pipe,exr_pipe,gem_pipe,gif_pipe,hdr_pipe,j2k_pipe,jpeg_pipe,"
    "jpegls_pipe,jpegxl_pipe,jpegxs_pipe,pam_pipe,pbm_pipe,pcx_pipe,pfm_pipe,pgm_pipe,"
    "pgmyuv_pipe,pgx_pipe,phm_pipe,png_pipe,ppm_pipe,psd_pipe,qoi_pipe,sgi_pipe,sunrast_pipe,"
    "tiff_pipe,webp_pipe,xbm_pipe,xpm_pipe,xwd_pipe"
)
"""Pictures with a video's suffix; SVG is not among them, because it can name other files."""
SOUND = "aac,ac3,aiff,ape,amr,au,caf,dts,eac3,flac,loas,mp3,opus,tta,w64,wav,wv"
"""Opened to say that they hold no video."""
OPTIONS = {
    "format_whitelist": f"{VIDEO},{IMAGES},{SOUND}",
    "protocol_whitelist": "file",
    # Of what looks like a series of pictures by its name, the file itself.
    "pattern_type": "none",
}
"""Options that FFmpeg is given when it opens somebody's file."""
PILLOW = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    "WEBP",
    "TIFF",
    "AVIF",
    "DIB",
    "JPEG2000",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "DDS",
    "PSD",
    "QOI",
)
"""Pictures that Pillow reads by itself; for EPS, say, it would start another program. The first
five need no plug-in."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
"""Brands that an iPhone's picture names after `ftyp`."""
AVIF_BRANDS = (b"avif", b"avis")
"""Brands of a picture that Pillow reads, whatever brand is named before them."""
BRANDS_BYTES = 64
"""Bytes at the start in which a picture's brands are."""
PLAYLISTS = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a list for FFmpeg",
    b"<MPD": "a DASH manifest",
    b"<?xml": "an XML manifest",
    b"v=0": "a session description",
    b"[playlist]": "a playlist",
    b"<asx": "a playlist",
}
"""How texts begin that name other files → names of these kinds of text."""


def image_formats(path: Path) -> tuple[str, ...]:
    """Return the formats that a picture may be in; the plug-in for those of iPhones is loaded for
    what looks like one. Raises OSError."""
    if not is_heic(path):
        return PILLOW
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return ("HEIF",)


def is_heic(path: Path) -> bool:
    """Tell whether a file begins as an iPhone's picture does. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(BRANDS_BYTES)
    end = min(len(start), int.from_bytes(start[:4]))
    brands = [start[at : at + 4] for at in range(8, end, 4)]
    if start[4:8] != b"ftyp" or any(brand in AVIF_BRANDS for brand in brands):
        return False
    return start[8:12] in HEIC_BRANDS


def playlist_in(start: bytes) -> str:
    """Return what kind of playlist a file is that begins so; empty for none."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((w for sign, w in PLAYLISTS.items() if text.startswith(sign.lower())), "")
