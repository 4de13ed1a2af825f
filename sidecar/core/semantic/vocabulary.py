"""English words by what they do: closed classes and common knowledge of the language, no name of anything.

It was written from general knowledge. No word may come in because some pair of questions needs it.
"""


def closed(words: str) -> frozenset[str]:
    """A closed class, written as one string."""
    return frozenset(words.split())


def ordered(words: str) -> tuple[str, ...]:
    """The same where their order matters."""
    return tuple(words.split())


FUNCTION = closed("""
a an the this that these those some any all every each other others another such same own either both and
or but if then so than as of in on at to for from with without by about into onto upon over under between
among amongst through throughout during before after above below up down out off again further toward
towards via per regarding concerning against along across behind beyond within around since until till
while whereas although though because unless whether except despite like unlike instead versus vs am is
are was were be been being do does did done doing have has had having can could will would shall should
may might must ought need dare cannot i me my mine myself you your yours yourself yourselves u ur we us
our ours ourselves he him his himself she her hers herself it its itself they them their theirs themselves
one ones oneself someone somebody anyone anybody everyone everybody something anything everything nothing
nobody none people person folks guys there here where when why how what which who whom whose whatever
whichever whoever whenever wherever however not no nor never neither very really quite just only even too
also still yet already always ever often sometimes usually rather much many more most less least few fewer
several lot lots bit enough almost nearly exactly actually currently nowadays now today basically simply
generally typically normally commonly mostly mainly particularly especially specifically certainly
definitely probably perhaps maybe possibly absolutely completely totally fully truly literally honestly
seriously apparently obviously overall anyway else etc eg ie well so far please pls plz kindly thanks
thank hi hello hey ok okay yes yeah
""")
"""They hold a sentence together, or colour it."""

QUALITIES = closed("""
able available capable suitable appropriate proper useful helpful effective interesting important
essential significant certain popular known real perfect ideal particular specific
""")
GENERAL = QUALITIES | closed("""
thing stuff way kind type idea example instance tip hint advice suggestion recommendation aspect reason fact
manner good nice great best better top excellent superb awesome wonderful brilliant fascinating amazing
incredible crucial actual genuine possible different famous notable favorite want wish need seem exist
happen occur get become come go
""")
"""They say so little that questions with and without them mostly ask the same."""

SAME = """
big large huge giant enormous massive gigantic; small tiny little mini; fast quick rapid speedy swift;
begin start commence launch; end finish conclude complete; stop quit cease halt; buy purchase;
job employment occupation career profession vocation; pay salary wage earnings income compensation;
technique approach method methodology procedure process strategy; movie film;
photo picture image photograph pic snapshot; kid child; mother mom mum mama; father dad papa;
doctor physician; mobile cell; phone smartphone cellphone telephone handset; app application;
website site webpage; computer pc; laptop notebook; car automobile vehicle; house home; hotel lodging;
shop store; teacher instructor tutor; student pupil; country nation; town city; road street;
trip journey tour; holiday vacation; error bug mistake fault;
fix repair solve resolve troubleshoot rectify; improve increase enhance boost;
reduce decrease lessen minimize lower diminish; remove delete erase eliminate;
prohibit ban forbid outlaw; hard difficult tough challenging; easy simple effortless;
smart intelligent clever; rich wealthy affluent; cheap inexpensive affordable; expensive costly pricey;
cost price; ugly hideous; angry mad furious; beautiful pretty gorgeous attractive handsome;
sad unhappy upset; happy glad joyful cheerful; afraid scared frightened;
strange weird odd bizarre unusual; funny hilarious humorous; stupid dumb foolish silly; sick ill unwell;
symptom sign; illness disease sickness disorder; cure treat remedy heal therapy;
medicine drug medication; risk danger hazard; dangerous risky unsafe hazardous perilous;
rule law regulation; goal aim objective purpose target; definition define;
effect affect impact influence consequence implication; result outcome;
benefit advantage pro merit upside; drawback disadvantage con downside demerit;
feature characteristic trait attribute; step stage phase; learn study; test exam examination;
college university; book textbook novel; speak talk; answer reply respond response; question query;
fight battle combat; hate dislike detest loathe; marry wed; speed velocity; power strength;
boss manager supervisor; firm company business corporation enterprise; employee worker staff;
customer client; information data info; internet web net; build construct; create produce generate make;
ruin destroy demolish; close shut; choose select pick; understand comprehend grasp; remember recall;
watch view see; cook prepare; eat consume; clothes clothing apparel garment; avoid prevent;
visit explore; handle manage cope overcome tackle deal; retain maintain preserve; change alter modify;
convert transform; originate stem; connection link relationship relation; separate divide split;
anxiety nervousness; problem issue trouble difficulty; refrigerator fridge; television tv;
advertisement ad advert; percent percentage; maximum max; minimum min; approximate rough;
beginner novice newbie starter newcomer; expert professional specialist; fake counterfeit; hide conceal;
hire recruit; near nearby; rare seldom; female woman lady; male man guy gentleman; girl lass; boy lad;
garbage trash rubbish; petrol gasoline; flat apartment; elevator lift; math mathematics maths;
lab laboratory; verify check confirm; quality standard; document doc; requirement prerequisite;
eligible qualified; popularity fame; sleep slumber; dog puppy canine; cat kitten feline; bicycle bike;
plane aeroplane airplane aircraft; lawyer attorney; pain ache; smell odor scent; taste flavor;
tired exhausted; shy timid; brave courageous; achieve accomplish attain; obtain acquire receive;
think believe suppose; tell say; use utilize; give provide; find locate; explain describe;
recommend suggest advise; main major key primary principal chief; basic fundamental elementary;
current present; include contain involve; try attempt; earn gain; allow permit authorize; whole entire;
rest remainder; injure wound; rubber eraser; kill murder; steal rob; yell shout; cry weep; jump leap;
throw toss; carry transport; border boundary; forecast prediction; opinion viewpoint; wealth riches;
freedom liberty; courage bravery; victory triumph; defeat beat; gather collect; assist aid;
quote quotation; famine starvation; grief sorrow; habit custom; trust confidence; donate contribute;
inform notify; demand require; show display exhibit; estimate guess; examine inspect; promise pledge;
refuse decline reject; surprise astonish; worry concern; shape figure; annual yearly; day everyday;
belly stomach abdomen tummy; boat ship; center middle; charge fee; climb ascend; coat jacket;
combine merge; crazy insane; crime offence offense; decide determine; delicious tasty; dirty filthy;
edit revise; evaluate assess; evil wicked; expect anticipate; obese overweight;
flaw defect; lucky fortunate; hurt harm damage; immediate instant; invent devise; lazy idle;
lonely lonesome; loyal faithful; mail post; mandatory compulsory obligatory; money cash;
necessary needed; obvious evident; origin source; package parcel; path route;
persuade convince; possibility chance likelihood probability odds; precise accurate; predict foresee;
prize award; proof evidence; protect guard; reliable trustworthy; rescue save; reveal disclose;
stay remain; stone rock; story tale; surgery operation; terrible awful horrible dreadful; thief robber;
timetable schedule; truck lorry; weak feeble; wedding marriage; wide broad; winner champion;
forest woods; wrong incorrect; bill invoice; discover uncover; escape flee; magazine journal;
meeting appointment; oven stove; sofa couch; diet nutrition; grave tomb; ocean sea; sunrise dawn;
sunset dusk; zip postal; bathroom restroom toilet; cab taxi; candy sweets; cellar basement;
chemist pharmacy drugstore; cinema theater; flashlight torch; highway motorway freeway; jail prison;
mailman postman; pavement sidewalk; subway underground metro; sweater jumper pullover; tap faucet;
trousers pants;
"""
"""Groups of words that say nearly the same."""

OPPOSITES = """
before/after; above over/below under beneath; inside indoors/outside outdoors; more/less fewer;
most/least; always/never; first/last; left/right; early/late; high tall/low; tall long/short; big/small;
fast/slow; old/young; hard/easy;
good nice great best better excellent wonderful/bad worse worst terrible awful horrible;
old ancient/new modern; hard/soft; hot warm/cold cool; heavy/light; dark/light bright; strong/weak;
thick fat/thin slim skinny; wide/narrow; deep/shallow; wet/dry; clean/dirty; full/empty; rich/poor;
cheap/expensive; loud/quiet silent; smart/stupid; beautiful/ugly; happy/sad; safe/dangerous;
healthy/unhealthy sick; legal lawful/illegal unlawful; possible/impossible; true real/false fake;
right correct/wrong incorrect; positive/negative; optimistic/pessimistic; advantage/disadvantage;
strength/weakness; success succeed/failure fail;
increase grow rise gain raise/reduce fall drop shrink lose; win/lose; buy/sell; give/receive;
send/receive; lend/borrow; teach/learn; love like/hate; accept/reject decline refuse deny;
agree/disagree; allow permit/prohibit prevent; start open/end stop close;
enable activate/disable deactivate; install/uninstall; connect attach/disconnect detach; lock/unlock;
block/unblock; follow/unfollow; encrypt/decrypt; encode/decode; compress/decompress; add insert/remove;
push/pull; import/export; upload/download; enter arrive/leave depart exit; come/go; ask question/answer;
remember/forget; build create/ruin; alive live/dead die; birth born/death die; male/female;
father/mother; son/daughter; boy/girl; brother/sister; husband/wife; uncle/aunt; king/queen;
he him his/she her hers; friend ally/enemy foe; war/peace; day/night; morning/evening; summer/winter;
north northern/south southern; east eastern/west western; public/private; maximum/minimum;
internal inner/external outer; input/output; introvert/extrovert; odd/even; ascending/descending;
horizontal/vertical; front/back rear; top/bottom; single/married; online/offline;
asynchronous async/synchronous sync; client/server; cause/cure treat prevent; major/minor;
majority/minority; urban/rural; domestic/foreign; parent/child; encourage/discourage; include/exclude;
expand/contract; appear/disappear; attack/defend; buyer/seller; employer/employee; profit/loss;
supply/demand; theory/practice; quantity/quality; cause/effect; arrival/departure; entrance/exit;
question/answer; temporary/permanent; active/passive; guilty/innocent; simple/complex complicated;
visible/invisible; voluntary/involuntary mandatory; liquid/solid;
"""
"""What is said on one side, and its opposites on the other."""

PARTICLES = "up/down; on/off; in/out"
"""Opposites as well, but mostly prepositions that say next to nothing: one counts where it is alone."""
