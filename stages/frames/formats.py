"""The list of file formats that FFmpeg may open, and the refusal of playlists.

Each accepted format is complete in one file. A playlist, a manifest or a concatenation names other
files, which an attacker could choose freely. Those files can also change while the playlist stays
the same. FFmpeg gets a list of allowed formats, because a new version may add another format of
that kind.
"""

from pathlib import Path

from artifacts.disk.regular_files import NotAFile, open_regular
from artifacts.disk.stamps import stamp_of
from artifacts.errors import MediaError

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
"""Images with a video's suffix. SVG is left out, because it can name other files."""
SOUND = "aac,ac3,aiff,ape,amr,au,caf,dts,eac3,flac,loas,mp3,opus,tta,w64,wav,wv"
"""Formats that are opened only to report that they hold no video."""
OPTIONS = {
    "format_whitelist": f"{VIDEO},{IMAGES},{SOUND}",
    "protocol_whitelist": "file",
    # Open the file itself even if its name looks like an image sequence.
    "pattern_type": "none",
}
"""FFmpeg options for opening user files."""
PLAYLISTS = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a list for FFmpeg",
    b"<MPD": "a DASH manifest",
    b"<?xml": "an XML manifest",
    b"v=0": "a session description",
    b"[playlist]": "a playlist",
    b"<asx": "a playlist",
}
"""First bytes of text files that name other files → name of the format."""
TEXT_BYTES = 1 << 10
"""Bytes at the start of a file that identify a text format."""


def playlist_in(start: bytes) -> str:
    """Return the kind of playlist that begins with `start`; empty if it is none."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((w for sign, w in PLAYLISTS.items() if text.startswith(sign.lower())), "")


def check_file(path: Path) -> None:
    """Raise MediaError unless `path` is a readable, non-empty file."""
    try:
        if path.is_dir():
            raise MediaError(
                f"{path} is a folder", kind="folder", hint="Give the files in it, or the folder"
            )
        with open_regular(path) as file:
            # Reading a file without a size, as in /proc, may never end.
            start = file.read(TEXT_BYTES) if stamp_of(file.fileno()).size else b""
    except NotAFile as error:
        raise MediaError(
            f"{path} is not a regular file",
            kind="not-a-file",
            hint="Leave it out, or copy its content into a file",
        ) from error
    except FileNotFoundError as error:
        raise MediaError(
            f"{path} does not exist", kind="missing", hint="Check the path, or mount its disk"
        ) from error
    except OSError as error:
        raise MediaError(
            f"{path} cannot be read ({error.strerror or error})",
            kind="unreadable",
            hint="Check its permissions and its disk",
        ) from error
    if not start:
        raise MediaError(f"{path} is empty", kind="empty", hint="Copy or download the file again")
    if playlist := playlist_in(start):
        raise MediaError(
            f"{path} is {playlist}, which refers to other files",
            kind="playlist",
            hint="Give those files, or convert it: ffmpeg -i LIST -c copy OUT.mkv",
        )
